import { copyTensor, type Device, Tensor } from '@moe-ep/core'

/** Random words repeat after so many: a prime, so that rows of a matrix begin at different ones. */
export const repeatAfter = 4_194_301

const blocks = new Map<string, Tensor>()

/**
 * Fills a tensor of any device with words that repeat after {@link repeatAfter}, in the order of its default stream. `make` gives
 * the first words of what `name` names; they are made and uploaded once.
 */
export function fillRepeating(tensor: Tensor, name: string, make: (words: number) => Uint32Array): void {
  const { memory, byteOffset, device } = tensor
  const bytes = tensor.byteLength - (tensor.byteLength % 4)
  if (bytes === 0) return
  const whole = new Tensor({ memory, dtype: 'u8', shape: [bytes], byteOffset })
  const block = blockOf(device, name, Math.min(bytes / 4, repeatAfter), make)
  let done = Math.min(bytes, block.byteLength)
  copyTensor(block.slice(0, done), whole.slice(0, done))
  while (done < bytes) {
    const count = Math.min(done, bytes - done)
    copyTensor(whole.slice(0, count), whole.slice(done, done + count))
    done += count
  }
}

/** Resolves when all tensors of a cuda device that were filled hold their words. */
export async function awaitFills(device: Device): Promise<void> {
  if (device.kind === 'cuda') await device.defaultStream.synchronize()
}

function blockOf(device: Device, name: string, words: number, make: (words: number) => Uint32Array): Tensor {
  const key = `${device.name} ${name}`
  const known = blocks.get(key)
  if (known !== undefined && known.byteLength >= words * 4) return known
  const block = Tensor.copyOf(make(words), [words * 4], 'u8', device)
  blocks.set(key, block)
  return block
}
