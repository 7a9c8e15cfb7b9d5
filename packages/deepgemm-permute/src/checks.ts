import { argumentError, type DType, dtypes, requireTensor, type Tensor } from '@moe-ep/core'

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

/** Checks i32 or i64 [M, K]. @throws ERR_MOE_EP_ARGUMENT. */
export function requireTopkIdx(
  value: unknown,
  numTokens: number | null = null,
  argument = 'topkIdx',
): asserts value is Tensor {
  requireTensor(argument, value, { dtype: ['i32', 'i64'], shape: [numTokens, null] })
}

/** Checks i32 [E], which may be absent. @throws ERR_MOE_EP_ARGUMENT. */
export function requireExpertMap(value: unknown): asserts value is Tensor | undefined {
  if (value !== undefined) requireTensor('expertMap', value, { dtype: 'i32', shape: [null] })
}

type NamedTensors = Readonly<Record<string, Tensor | undefined>>

/** Bytes from a tensor's first element to the end of its last, gaps included; undefined where it has none. */
function rangeOf(tensor: Tensor | undefined): { readonly begin: bigint; readonly end: bigint } | undefined {
  if (tensor === undefined || tensor.numel === 0) return undefined
  const last = tensor.shape.reduce((sum, size, d) => sum + (size - 1) * tensor.strides[d]!, 0)
  const bytes = Math.ceil(((last + 1) * dtypes[tensor.dtype].bits) / 8)
  return { begin: tensor.pointer, end: tensor.pointer + BigInt(bytes) }
}

/** @throws ERR_MOE_EP_ARGUMENT when an output lies on an input, which would be overwritten before it is read. */
export function requireDisjoint(outputs: NamedTensors, inputs: NamedTensors): void {
  for (const [name, output] of Object.entries(outputs)) {
    const written = rangeOf(output)
    if (written === undefined) continue
    for (const [other, input] of Object.entries(inputs)) {
      const read = rangeOf(input)
      if (read !== undefined && written.begin < read.end && read.begin < written.end)
        throw argumentError(name, `memory apart from ${other}`, 'overlapping bytes')
    }
  }
}

/** @throws ERR_MOE_EP_ARGUMENT when one of the tensors in `out` lies on one that is read. */
export function requireOutDisjoint(out: NamedTensors, inputs: NamedTensors): void {
  requireDisjoint(Object.fromEntries(Object.entries(out).map(([name, tensor]) => [`out.${name}`, tensor])), inputs)
}
