import {
  type DType,
  dtypes,
  getDefaultDevice,
  getDevice,
  MoeEpError,
  type Stream,
  Tensor,
  wrapArrayBuffer,
} from '@moe-ep/core'
import fc from 'fast-check'

/** What everything runs on: the cpu, or what MOE_EP_DEVICE names. */
export const device = getDefaultDevice()

/** The cpu, which holds what results are compared with. */
const host = getDevice('cpu')

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

/** Options that both the reference (arrays) and the operations (tensors) take for a routing. */
export function optionsOf(
  routing: Routing,
  idDtype: 'i32' | 'i64',
): {
  readonly reference: { numLocalExperts: number; topkIdx: number[][]; expertMap?: number[] }
  readonly ours: { numLocalExperts: number; topkIdx: Tensor; expertMap?: Tensor }
} {
  const { numLocalExperts, expertMap, topk, topkIdx } = routing
  return {
    reference: { numLocalExperts, topkIdx, ...(expertMap && { expertMap }) },
    ours: {
      numLocalExperts,
      topkIdx: Tensor.from(topkIdx.flat(), [topkIdx.length, topk], idDtype),
      ...(expertMap && { expertMap: Tensor.from(expertMap, [expertMap.length], 'i32') }),
    },
  }
}

/** The host's copies of inputs. */
const origins = new WeakMap<Tensor, Tensor>()

/** A tensor of pseudo-random bits: every pattern, NaN and infinity too, and the same for the same seed. */
export function randomBits(shape: readonly number[], dtype: DType, seed = 1): Tensor {
  const origin = Tensor.zeros(shape, dtype, host)
  const { buffer, byteOffset, byteLength } = origin.data
  const bytes = new Uint8Array(buffer, byteOffset, byteLength)
  const next = generator(seed)
  for (let i = 0; i < bytes.length; i++) bytes[i] = next() >>> 24
  const tensor = Tensor.copyOf(origin.data, shape, dtype)
  origins.set(tensor, origin)
  return tensor
}

/** What `randomBits` put into a tensor; a tensor of the host is its own. */
export function hostOf(tensor: Tensor): Tensor {
  return origins.get(tensor) ?? tensor
}

/** A tensor's elements on the host, with the same shape and strides, as they are behind all work of the stream. */
export async function copyToHost(tensor: Tensor, stream: Stream = tensor.device.defaultStream): Promise<Tensor> {
  const { dtype, shape, strides, memory, byteOffset } = tensor
  if (tensor.isContiguous) {
    const stored = await tensor.read({ stream })
    return new Tensor({ memory: wrapArrayBuffer(host, stored), dtype, shape, strides })
  }
  const length = memory.byteLength - byteOffset
  const bytes = await new Tensor({ memory, dtype: 'u8', shape: [length], byteOffset }).read({ stream })
  return new Tensor({ memory: wrapArrayBuffer(host, bytes), dtype, shape, strides })
}

/** A result with its tensors on the host. */
export async function onHost<Result extends object>(result: Result, stream?: Stream): Promise<Result> {
  if (result instanceof Tensor) return (await copyToHost(result, stream)) as Result & Tensor
  const copies: [string, unknown][] = []
  for (const [name, value] of Object.entries(result))
    copies.push([name, value instanceof Tensor ? await copyToHost(value, stream) : value])
  return Object.fromEntries(copies) as Result
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
  const { buffer, byteOffset } = hostOf(tensor).data
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

/** The elements of a strided matrix or batch of matrices, in storage form, by rows. */
export function elementRows(tensor: Tensor): number[][] {
  const { shape, strides, dtype, memory, byteOffset } = hostOf(tensor)
  const { storage: Storage } = dtypes[dtype]
  const { BYTES_PER_ELEMENT } = Storage
  const { buffer, byteOffset: memoryOffset } = memory.range(0, memory.byteLength)
  const all = new Storage(buffer, memoryOffset, Math.floor(memory.byteLength / BYTES_PER_ELEMENT))
  const start = byteOffset / BYTES_PER_ELEMENT
  const [batches, rows, columns] = shape.length === 3 ? shape : [1, ...shape]
  const [batchStride, rowStride, columnStride] = strides.length === 3 ? strides : [0, ...strides]
  return Array.from({ length: batches! * rows! }, (_, i) =>
    Array.from({ length: columns! }, (__, column) => {
      const [batch, row] = [Math.floor(i / rows!), i % rows!]
      return Number(all[start + batch * batchStride! + row * rowStride! + column * columnStride!])
    }),
  )
}

/** The bits of f32 or i32 rows, so that NaN compares by its bits. */
export function asWords(tensor: Tensor): Tensor {
  const { memory, shape, strides, byteOffset, dtype } = hostOf(tensor)
  return new Tensor({ memory, shape, strides, byteOffset, dtype: dtype === 'f32' ? 'i32' : dtype })
}

/** The first row in which two matrices differ; undefined when they are equal. Much faster than toEqual on many rows. */
export function firstDifference(
  actual: readonly ArrayLike<number>[],
  expected: readonly ArrayLike<number>[],
): { row: number; actual: number[] | undefined; expected: number[] | undefined } | undefined {
  const same = (a: ArrayLike<number>, b: ArrayLike<number>): boolean => {
    if (a.length !== b.length) return false
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
    return true
  }
  for (let row = 0; row < Math.max(actual.length, expected.length); row++) {
    const [a, b] = [actual[row], expected[row]]
    if (a && b && same(a, b)) continue
    return { row, actual: a && Array.from(a), expected: b && Array.from(b) }
  }
  return undefined
}

/**
 * An operation's results; under initcheck in rows that were zeros before. Of a bulk store it sees the first 32 bytes only, and
 * would call the rest uninitialised where a kernel reads the rows. Not otherwise: racecheck's memory grows with each launch.
 */
export function intoZeros<Results extends { rows: Tensor }>(
  call: (options: { out?: { rows: Tensor } }) => Results,
): Results {
  const results = call({})
  if (process.env['MOE_EP_SANITIZER'] !== 'initcheck') return results
  const { shape, dtype } = results.rows
  return call({ out: { rows: Tensor.zeros(shape, dtype) } })
}
