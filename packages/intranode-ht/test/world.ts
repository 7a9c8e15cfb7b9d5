import { copyTensor, type DType, decode, encode, type Stream, Tensor } from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'
import { expect } from 'vitest'
import { numbersOf, randomNumbers } from '../../transport/test/symmetric/numbers.js'
import {
  captureTogether,
  countMappings,
  device,
  deviceOfRank,
  eventually,
  withWorldOf,
  type WorldRank,
} from '../../transport/test/symmetric/world.js'
import { IntranodeBuffer, type IntranodeBufferOptions, type reference } from '../src/index.js'

export { codesOf, failureOf } from '../../transport/test/rendezvous/world.js'
export { captureTogether, device, deviceOfRank, numbersOf, randomNumbers }

/** A buffer on the rank's device. */
export function createBuffer(group: ProcessGroup, options: IntranodeBufferOptions): Promise<IntranodeBuffer> {
  return IntranodeBuffer.create(group, { device: deviceOfRank(group.rank), ...options })
}

/** A rank with its buffer. */
export interface Rank extends WorldRank {
  readonly buffer: IntranodeBuffer
}

/** Runs `body` for all ranks of a world at the same time, then closes everything. */
export async function withWorld(
  numRanks: number,
  options: IntranodeBufferOptions & { readonly threads?: (rank: number) => number },
  body: (ranks: readonly Rank[]) => Promise<void>,
): Promise<void> {
  const { threads, ...bufferOptions } = options
  const create = (group: ProcessGroup): Promise<IntranodeBuffer> => createBuffer(group, bufferOptions)
  await withWorldOf(numRanks, { ...(threads && { threads }) }, create, (ranks) =>
    body(ranks.map(({ opened, ...rank }) => ({ ...rank, buffer: opened }))),
  )
}

export interface InputShape {
  readonly numTokens: readonly number[]
  readonly hidden: number
  readonly topk: number
  readonly numExperts: number
  readonly dtype: DType
  readonly seed: number
  /** Replaces the random choice of an expert. */
  readonly choose?: (random: number) => number
}

/** Random inputs of all ranks, rounded to their dtype. Ids may repeat within a token, and some are -1. */
export function randomInputs(shape: InputShape): reference.ReferenceInput[] {
  const random = randomNumbers(shape.seed)
  const round = (values: number[]): number[] => Array.from(decode(shape.dtype, encode(shape.dtype, values)))
  const draw = (): number => (shape.dtype === 'u8' ? Math.floor(random() * 256) : random() * 4 - 2)
  const choose = shape.choose ?? ((value: number) => (value < 0.1 ? -1 : Math.floor(random() * shape.numExperts)))
  return shape.numTokens.map((tokens) => ({
    x: Array.from({ length: tokens }, () => round(Array.from({ length: shape.hidden }, draw))),
    topkIdx: Array.from({ length: tokens }, () => Array.from({ length: shape.topk }, () => choose(random()))),
    topkWeights: Array.from({ length: tokens }, () => Array.from({ length: shape.topk }, () => Math.fround(random()))),
  }))
}

/** The tensors of one rank's input, where its stream is. */
export function toTensors(
  input: reference.ReferenceInput,
  shape: InputShape,
  { device }: Stream,
  idDtype: 'i32' | 'i64' = 'i64',
) {
  const tokens = input.x.length
  return {
    x: Tensor.from(input.x.flat(), [tokens, shape.hidden], shape.dtype, device),
    topkIdx: Tensor.from(input.topkIdx.flat(), [tokens, shape.topk], idDtype, device),
    topkWeights: Tensor.from(input.topkWeights.flat(), [tokens, shape.topk], 'f32', device),
  }
}

/** Rows of a tensor as numbers. */
export async function rowsOf(tensor: Tensor): Promise<number[][]> {
  const [rows, columns] = tensor.shape as [number, number]
  const values = await numbersOf(tensor)
  return Array.from({ length: rows }, (_, row) => values.slice(row * columns, (row + 1) * columns))
}

/** Enqueues a copy of a tensor's elements into another. */
export function overwrite(to: Tensor, from: Tensor, stream: Stream): void {
  copyTensor(from, to, { stream })
}

/** Everything but so many mappings is gone: on the cpu at once, on a GPU when somebody looks after it has done its work. */
export async function expectMappings(count: number): Promise<void> {
  if (device.kind === 'cuda') await eventually(() => countMappings() === count, `there are ${count} mappings`)
  expect(countMappings()).toBe(count)
}

/** Rows of a tensor that lies on the cpu. */
export function rowsOnHost(tensor: Tensor): number[][] {
  const [rows, columns] = tensor.shape as [number, number]
  const values = Array.from(tensor.toNumbers())
  return Array.from({ length: rows }, (_, row) => values.slice(row * columns, (row + 1) * columns))
}
