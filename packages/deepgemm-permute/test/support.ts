import { type DType, dtypes, getDevice, MoeEpError, Tensor } from '@moe-ep/core'
import fc from 'fast-check'

export const device = getDevice('cpu')

/** Routing of some tokens: what both the reference and the cpu take. */
export interface Routing {
  readonly numLocalExperts: number
  readonly expertMap: number[] | undefined
  readonly topk: number
  readonly topkIdx: number[][]
}

/** Ids that are local, with a map or without: random, one hot expert, none, and duplicates in a row. */
export const routings: fc.Arbitrary<Routing> = fc
  .record({
    numLocalExperts: fc.integer({ min: 1, max: 20 }),
    topk: fc.integer({ min: 1, max: 9 }),
    mapped: fc.boolean(),
  })
  .chain(({ numLocalExperts, topk, mapped }) => {
    const local = fc.integer({ min: -1, max: numLocalExperts - 1 })
    const maps = mapped ? fc.array(local, { minLength: 1, maxLength: 40 }) : fc.constant(undefined)
    return maps.chain((expertMap) => {
      const last = (expertMap?.length ?? numLocalExperts) - 1
      const row = (id: fc.Arbitrary<number>): fc.Arbitrary<number[]> =>
        fc.array(id, { minLength: topk, maxLength: topk })
      const anyRow = fc.oneof(
        row(fc.integer({ min: -1, max: last })),
        row(fc.constant(last)),
        row(fc.constant(-1)),
        row(fc.constantFrom(-1, 0)),
      )
      return fc.record({
        numLocalExperts: fc.constant(numLocalExperts),
        expertMap: fc.constant(expertMap),
        topk: fc.constant(topk),
        topkIdx: fc.array(anyRow, { maxLength: 40 }),
      })
    })
  })

/** Options that both the reference (arrays) and the cpu (tensors) take for a routing. */
export function optionsOf(
  routing: Routing,
  idDtype: 'i32' | 'i64',
): {
  readonly reference: { numLocalExperts: number; topkIdx: number[][]; expertMap?: number[] }
  readonly cpu: { numLocalExperts: number; topkIdx: Tensor; expertMap?: Tensor }
} {
  const { numLocalExperts, expertMap, topk, topkIdx } = routing
  return {
    reference: { numLocalExperts, topkIdx, ...(expertMap && { expertMap }) },
    cpu: {
      numLocalExperts,
      topkIdx: Tensor.from(topkIdx.flat(), [topkIdx.length, topk], idDtype),
      ...(expertMap && { expertMap: Tensor.from(expertMap, [expertMap.length], 'i32') }),
    },
  }
}

/** A tensor of pseudo-random bits: every pattern, NaN and infinity too, and the same for the same seed. */
export function randomBits(shape: readonly number[], dtype: DType, seed = 1): Tensor {
  const tensor = Tensor.zeros(shape, dtype)
  const bytes = new Uint8Array(tensor.memory.arrayBuffer, 0, tensor.byteLength)
  const next = generator(seed)
  for (let i = 0; i < bytes.length; i++) bytes[i] = next() >>> 24
  return tensor
}

/** Pseudo-random numbers in [-1, 1). */
export function randomNumbers(length: number, seed = 1): Float32Array {
  const next = generator(seed)
  return Float32Array.from({ length }, () => next() / 2 ** 31 - 1)
}

function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) >>> 0
    return Math.imul(state ^ (state >>> 12), 0x297a2d39) >>> 0
  }
}

/** The bytes of each row of a contiguous matrix. */
export function rowBytes(tensor: Tensor): Uint8Array[] {
  const [rows, columns] = tensor.shape as [number, number]
  const size = (columns * dtypes[tensor.dtype].bits) / 8
  const { buffer, byteOffset } = tensor.data
  return Array.from({ length: rows }, (_, row) => new Uint8Array(buffer, byteOffset + row * size, size))
}

/** The rows of a list, cut from a flat one. */
export function matrix(values: ArrayLike<number>, columns: number): number[][] {
  const flat = Array.from(values)
  return Array.from({ length: columns === 0 ? 0 : flat.length / columns }, (_, row) =>
    flat.slice(row * columns, (row + 1) * columns),
  )
}

/** The failure that the next await of the default stream gives. */
export async function failure(): Promise<MoeEpError> {
  const error: unknown = await device.defaultStream.synchronize().then(
    () => new Error('the stream did not fail'),
    (reason: unknown) => reason,
  )
  if (!MoeEpError.isInstance(error)) throw error
  return error
}
