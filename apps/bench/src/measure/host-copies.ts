import { copyTensor, getDevice, type Memory, type Stream, Tensor } from '@moe-ep/core'
import type { BenchContext } from '../operations/operation.js'
import type { Scope } from './scope.js'

/** A value whose tensors can be looked at: itself on the cpu, else its {@link hostCopies}. */
export async function inHostMemory<Value>(
  { device, stopwatch }: Pick<BenchContext, 'device' | 'stopwatch'>,
  scope: Scope,
  value: Value,
): Promise<Value> {
  return device.kind === 'cpu' ? value : hostCopies(value, scope, stopwatch.stream)
}

/**
 * The same value with every tensor in it replaced by one in the host's memory: equal bytes, shape, strides and offset. Looks into
 * arrays and plain objects; memory that tensors share is copied once. The copies belong to the scope and lie behind all work of the
 * stream.
 */
export async function hostCopies<Value>(value: Value, scope: Scope, stream: Stream): Promise<Value> {
  const copies = new Map<Memory, Memory>()
  const copyOf = (memory: Memory): Memory => {
    const known = copies.get(memory)
    if (known !== undefined) return known
    const copy = scope.own(getDevice('cpu').allocate(memory.byteLength))
    copies.set(memory, copy)
    if (memory.byteLength > 0) copyTensor(wholeOf(memory), wholeOf(copy), { stream })
    return copy
  }
  const visit = (part: unknown): unknown => {
    if (part instanceof Tensor) {
      const { memory, dtype, shape, strides, byteOffset } = part
      return new Tensor({ memory: copyOf(memory), dtype, shape, strides, byteOffset })
    }
    if (Array.isArray(part)) return part.map(visit)
    if (!isPlainObject(part)) return part
    return Object.fromEntries(Object.entries(part).map(([name, member]) => [name, visit(member)]))
  }
  const result = visit(value) as Value
  await stream.synchronize()
  return result
}

function wholeOf(memory: Memory): Tensor {
  return new Tensor({ memory, dtype: 'u8', shape: [memory.byteLength] })
}

function isPlainObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype
}
