import { argumentError, type Device, type DType, overlap, requireTensor, type Tensor } from '@moe-ep/core'

/** Most rows that i32 row numbers can name. */
export const maxRows = 2 ** 31 - 1

/**
 * Checks a matrix whose rows may lie apart (any row stride) but whose columns lie together.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function requireRows(
  argument: string,
  value: unknown,
  dtype: DType | readonly DType[],
  shape: readonly (number | null)[] = [null, null],
): asserts value is Tensor {
  requireTensor(argument, value, { dtype, shape, contiguous: false })
  if (value.shape[1]! > 1 && value.strides[1] !== 1) {
    throw argumentError(argument, 'columns with stride 1', `${value} with strides [${value.strides.join(', ')}]`)
  }
}

/** Checks i32 or i64 [M, K], on a device where one is given. @throws ERR_MOE_EP_ARGUMENT. */
export function requireTopkIdx(
  value: unknown,
  numTokens: number | null = null,
  device?: Device,
  argument = 'topkIdx',
): asserts value is Tensor {
  requireTensor(argument, value, { dtype: ['i32', 'i64'], shape: [numTokens, null], ...(device && { device }) })
}

/** Checks i32 [E], which may be absent. @throws ERR_MOE_EP_ARGUMENT. */
export function requireExpertMap(value: unknown, device: Device): asserts value is Tensor | undefined {
  if (value !== undefined) requireTensor('expertMap', value, { dtype: 'i32', shape: [null], device })
}

type NamedTensors = Readonly<Record<string, Tensor | undefined>>

/** @throws ERR_MOE_EP_ARGUMENT when an output lies on an input, which would be overwritten before it is read. */
export function requireDisjoint(outputs: NamedTensors, inputs: NamedTensors): void {
  for (const [name, output] of Object.entries(outputs)) {
    if (output === undefined) continue
    for (const [other, input] of Object.entries(inputs)) {
      if (input !== undefined && overlap(output, input))
        throw argumentError(name, `memory apart from ${other}`, 'overlapping bytes')
    }
  }
}

/**
 * `out` may be the result of an earlier call, which has tensors that are never written again.
 *
 * @throws ERR_MOE_EP_ARGUMENT when one of the tensors in `out` that become part of `result` lies on one that is read.
 */
export function requireOutDisjoint(out: object, result: object, inputs: NamedTensors): void {
  const written = Object.entries(result).filter(([name, tensor]) => out[name as keyof typeof out] === tensor)
  requireDisjoint(Object.fromEntries(written.map(([name, tensor]) => [`out.${name}`, tensor])), inputs)
}
