import type { Device } from './device.js'
import type { DType } from './dtype.js'
import { argumentError, MoeEpError } from './error.js'
import { Tensor } from './tensor.js'

/** What an operation asks of a tensor argument. A size of `null` accepts any. */
export interface TensorRequirement {
  readonly dtype?: DType | readonly DType[]
  readonly shape?: readonly (number | null)[]
  /** Default true: operations address rows by row-major offsets. */
  readonly contiguous?: boolean
  /** Where the operation runs. */
  readonly device?: Device
}

/**
 * Checks a tensor argument of a public operation.
 * @throws ERR_MOE_EP_ARGUMENT that names the argument, what was expected and what came; ERR_MOE_EP_RELEASED when its memory was closed.
 */
export function requireTensor(
  argument: string,
  value: unknown,
  requirement: TensorRequirement = {},
): asserts value is Tensor {
  if (!isTensor(value)) throw argumentError(argument, 'a Tensor', value)
  const { dtype, shape, contiguous = true, device } = requirement
  if (dtype !== undefined && dtype !== value.dtype && !(typeof dtype === 'object' && dtype.includes(value.dtype))) {
    throw argumentError(argument, `dtype ${[dtype].flat().join(' or ')}`, value.toString())
  }
  if (shape !== undefined && !hasShape(value, shape))
    throw argumentError(argument, `shape [${shape.map((size) => size ?? 'any').join(', ')}]`, value.toString())
  // By name: the other module format's copy of a device is another object.
  if (device !== undefined && value.device.name !== device.name) {
    throw argumentError(argument, `a tensor on ${device}`, value.toString())
  }
  if (contiguous && !value.isContiguous) {
    throw argumentError(argument, 'a contiguous tensor', `${value} with strides [${value.strides.join(', ')}]`)
  }
  if (value.memory.closed) {
    throw new MoeEpError('ERR_MOE_EP_RELEASED', `${argument}: the tensor's memory was closed`, {
      details: { argument },
    })
  }
}

function hasShape({ shape }: Tensor, wanted: readonly (number | null)[]): boolean {
  if (shape.length !== wanted.length) return false
  for (let d = 0; d < wanted.length; d++) if (wanted[d] !== null && wanted[d] !== shape[d]) return false
  return true
}

/** GPUs move rows in pieces of 16 bytes, from and to addresses that are multiples of that. @throws ERR_MOE_EP_ARGUMENT. */
export function requireAligned(argument: string, rows: Tensor): void {
  if (rows.device.kind === 'cuda' && rows.pointer % 16n !== 0n)
    throw argumentError(argument, 'an address that is a multiple of 16', `0x${rows.pointer.toString(16)} (${rows})`)
}

/** Whether two tensors share bytes, or lie between each other's: an output must not overwrite what is still to be read. */
export function overlap(a: Tensor, b: Tensor): boolean {
  if (a.spanBytes === 0 || b.spanBytes === 0) return false
  const [beginA, beginB] = [Number(a.memory.pointer) + a.byteOffset, Number(b.memory.pointer) + b.byteOffset]
  return beginA < beginB + b.spanBytes && beginB < beginA + a.spanBytes
}

/** Also true for tensors of the other module format's copy of this class. */
function isTensor(value: unknown): value is Tensor {
  return (
    value instanceof Tensor || (typeof value === 'object' && value !== null && 'memory' in value && 'strides' in value)
  )
}
