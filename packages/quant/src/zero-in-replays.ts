import { copyTensor, type Memory, type Stream, Tensor } from '@moe-ep/core'

/**
 * For new memory of a result that is not written everywhere, which is zero: enqueues what makes it zero again where work is captured or
 * planned, so that every launch gives what a fresh call gives.
 */
export function zeroInReplays(memory: Memory, stream: Stream): void {
  if (!stream.recording) return
  const bytesOf = (of: Memory): Tensor => new Tensor({ memory: of, dtype: 'u8', shape: [of.byteLength] })
  copyTensor(bytesOf(stream.device.allocate(memory.byteLength)), bytesOf(memory), { stream })
}
