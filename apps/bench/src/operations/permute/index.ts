import type { Operation } from '../operation.js'
import { permuteOf } from './contiguous.js'
import { countTokens } from './count.js'
import { permuteMaskedOf } from './masked.js'
import { moePermuteOf } from './sorted.js'
import { unpermuteOf } from './unpermute.js'

export const permuteOperations = {
  'deepgemm-permute.countExpertNumTokens': countTokens,
  'deepgemm-permute.permute-bf16': permuteOf('bf16'),
  'deepgemm-permute.permute-fp8': permuteOf('fp8'),
  'deepgemm-permute.permute-fp8-counting': permuteOf('fp8', 'counted'),
  'deepgemm-permute.permute-fp8-column-major': permuteOf('fp8-column-major'),
  'deepgemm-permute.permute-fp8-packed': permuteOf('fp8-packed'),
  'deepgemm-permute.unpermuteAndReduce': unpermuteOf('contiguous'),
  'deepgemm-permute.permuteMasked-bf16': permuteMaskedOf('bf16'),
  'deepgemm-permute.permuteMasked-fp8-column-major': permuteMaskedOf('fp8-column-major'),
  'deepgemm-permute.permuteMasked-fp8-packed': permuteMaskedOf('fp8-packed'),
  'deepgemm-permute.unpermuteMaskedAndReduce': unpermuteOf('masked'),
  'deepgemm-permute.moePermute-bf16': moePermuteOf('bf16'),
  'deepgemm-permute.moePermute-fp8': moePermuteOf('fp8'),
  'deepgemm-permute.moeUnpermute': unpermuteOf('sorted'),
} as const satisfies Record<string, Operation>
