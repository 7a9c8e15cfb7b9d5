/**
 * The same operations in plain TypeScript: the oracle. Slow, obvious, complete. Matrices are arrays of rows.
 */
export { moePermute, moeUnpermute, type ReferenceMoePermuted } from './moe-permute.js'
export { permuteMasked, type ReferencePermutedMasked } from './permute-masked.js'
export { permute, type ReferencePermuted, type ReferencePermuteOptions } from './permute.js'
export { computeAlignedM, countExpertNumTokens, type LocalExpertOptions } from './routing.js'
export { packUe8m0 } from './scales.js'
export { unpermuteAndReduce } from './unpermute.js'
