import type { Tensor } from '@moe-ep/core'

/** Small deterministic generator, so that a failing case can be run again. */
export function randomNumbers(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0
    return ((state >>> 8) & 0xffff) / 0x10000
  }
}

/** Elements of a tensor as numbers. Await the stream that writes them first: they are read on the default stream. */
export async function numbersOf(tensor: Tensor): Promise<number[]> {
  return Array.from(await tensor.readNumbers())
}
