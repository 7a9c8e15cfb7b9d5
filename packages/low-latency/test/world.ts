import { copyTensor, decode, encode, MoeEpError, type Stream, Tensor } from '@moe-ep/core'
import { linearPlacement } from '@moe-ep/layout'
import type { ProcessGroup } from '@moe-ep/transport'
import { numbersOf, randomNumbers } from '../../transport/test/symmetric/numbers.js'
import { captureTogether, device, withWorldOf, type WorldRank } from '../../transport/test/symmetric/world.js'
import { LowLatencyBuffer, type LowLatencyBufferOptions, reference } from '../src/index.js'

export { failureOf } from '../../transport/test/rendezvous/world.js'
export { captureTogether, device, numbersOf, randomNumbers }

/** A rank with its buffer. */
export interface Rank extends WorldRank {
  readonly buffer: LowLatencyBuffer
}

/** Runs `body` for all ranks of a world at the same time, then closes everything. */
export async function withWorld(
  numRanks: number,
  options: LowLatencyBufferOptions,
  body: (ranks: readonly Rank[]) => Promise<void>,
): Promise<void> {
  const create = (group: ProcessGroup): Promise<LowLatencyBuffer> =>
    LowLatencyBuffer.create(group, { device, ...options })
  await withWorldOf(numRanks, { threads: (rank) => 1 + (rank % 2) }, create, (ranks) =>
    body(ranks.map(({ opened, ...rank }) => ({ ...rank, buffer: opened }))),
  )
}

/** The code of what a call throws at once. */
export function codeOf(call: () => unknown): string {
  try {
    call()
  } catch (error) {
    if (MoeEpError.isInstance(error)) return error.code
    throw error
  }
  return 'nothing was thrown'
}

export interface InputShape {
  readonly numTokens: readonly number[]
  readonly hidden: number
  readonly topk: number
  readonly numExperts: number
  readonly seed: number
  /** Replaces the random choice of an expert. */
  readonly choose?: ((random: number) => number) | undefined
}

/** What one rank dispatches, rows in bf16 values. */
export interface Input extends reference.ReferenceInput {
  readonly x: readonly (readonly number[])[]
}

/** Random inputs of all ranks. Ids may repeat within a token, some are -1, and weights may be negative. */
export function randomInputs(shape: InputShape): Input[] {
  const random = randomNumbers(shape.seed)
  const choose = shape.choose ?? ((value: number) => (value < 0.1 ? -1 : Math.floor(random() * shape.numExperts)))
  const list = <T>(length: number, make: () => T): T[] => Array.from({ length }, make)
  return shape.numTokens.map((tokens) => ({
    x: list(tokens, () => toBf16(list(shape.hidden, () => random() * 4 - 2))),
    topkIdx: list(tokens, () => list(shape.topk, () => choose(random()))),
    topkWeights: list(tokens, () => list(shape.topk, () => Math.fround(random() * 2 - 0.5))),
  }))
}

export function toBf16(values: readonly number[]): number[] {
  return Array.from(decode('bf16', encode('bf16', values)))
}

/** The tensors of one rank's input. */
export function toTensors(input: Input, shape: InputShape, idDtype: 'i32' | 'i64' = 'i64') {
  const tokens = input.x.length
  return {
    x: Tensor.from(input.x.flat(), [tokens, shape.hidden], 'bf16'),
    topkIdx: Tensor.from(input.topkIdx.flat(), [tokens, shape.topk], idDtype),
    topkWeights: Tensor.from(input.topkWeights.flat(), [tokens, shape.topk], 'f32'),
  }
}

/** What an expert makes of a row: anything that depends on the row and on the expert. */
export function resultOf(values: readonly number[], expert: number): number[] {
  return toBf16(values.map((value) => Math.fround(value * (expert + 0.5))))
}

/** What every expert of every rank answers: [rank][local expert][row]. */
export function resultsOf(inputs: readonly Input[], numExperts: number): number[][][][] {
  const placement = linearPlacement(numExperts, inputs.length)
  return reference
    .dispatch(inputs, numExperts)
    .map((experts, rank) =>
      experts.map((rows, local) =>
        rows.map(({ sourceRank, sourceToken }) =>
          resultOf(inputs[sourceRank]!.x[sourceToken]!, placement.rangeOf(rank).begin + local),
        ),
      ),
    )
}

/** Results as combine takes them, [L, N, hidden]; what no row belongs to is NaN. */
export function resultsTensor(results: readonly (readonly (readonly number[])[])[], rows: number, hidden: number) {
  const values = results.flatMap((ofExpert) => {
    const padding = new Array<number>((rows - ofExpert.length) * hidden).fill(NaN)
    return ofExpert.flat().concat(padding)
  })
  return Tensor.from(values, [results.length, rows, hidden], 'bf16')
}

/** Enqueues other elements for a tensor. */
export function overwrite(tensor: Tensor, values: readonly number[], stream: Stream): void {
  copyTensor(Tensor.from([...values], tensor.shape, tensor.dtype), tensor, { stream })
}
