import { CpuDevice, Memory, Tensor } from '@moe-ep/core'
import { vi } from 'vitest'

/** The cpu in the place of a GPU: what is done for cuda is done. */
export const standIn: CpuDevice = Object.defineProperties(new CpuDevice(), {
  ...{ kind: { value: 'cuda' }, name: { value: 'cuda:0' }, multiprocessors: { value: 4 } },
})

/** From now on nothing looks into the memory of the device, except for dispatches, which know that it is a cpu. */
export function guardStandIn(): void {
  // The spies are on the stack, too.
  Error.stackTraceLimit = 30
  const { range } = Object.getOwnPropertyDescriptors(Memory.prototype)
  vi.spyOn(Memory.prototype, 'range').mockImplementation(function (this: Memory, ...args) {
    if (this.device === standIn) {
      const error = new Error('looks into the memory of the device')
      if (!/[/\\]intranode-ht[/\\]src[/\\]/.test(error.stack!)) throw error
    }
    return range.value!.apply(this, args)
  })
  const { copyOf } = Tensor
  vi.spyOn(Tensor, 'copyOf').mockImplementation((stored, shape, dtype, device) => {
    if (device !== standIn) return copyOf(stored, shape, dtype, device)
    const tensor = Tensor.empty(shape, dtype, device)
    const bytes = new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength)
    new Uint8Array(tensor.memory.arrayBuffer).set(bytes)
    return tensor
  })
}
