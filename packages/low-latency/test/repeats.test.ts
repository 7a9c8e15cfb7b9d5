import { createHash } from 'node:crypto'
import { copyTensor, type DType, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { LowLatencyBuffer, type RecvLayout } from '../src/index.js'
import { optionsOf, wholeRows } from './formats.js'
import { device, type Input, type Rank, randomInputs, randomNumbers, toTensors, withWorld } from './world.js'

const numRanks = 3
const repeats = 20
const seeds = 1000
const most = { hidden: 160, maxTokensPerRank: 3, maxTopk: 4 }

/** How rows of a format are stored: bits of an element, and for how many of them a scale is. */
interface Storage {
  readonly values: DType
  readonly bits: number
  readonly scales?: { readonly dtype: DType; readonly bytes: number; readonly group: number }
}

const fp8: Storage = { values: 'fp8e4m3', bits: 8, scales: { dtype: 'f32', bytes: 4, group: 128 } }
const storages: Readonly<Record<string, Storage>> = {
  bf16: { values: 'bf16', bits: 16 },
  fp8,
  'fp8, powers of two': fp8,
  // A word of four scales.
  'fp8, packed': { ...fp8, scales: { dtype: 'i32', bytes: 4, group: 512 } },
  mxfp8: { values: 'fp8e4m3', bits: 8, scales: { dtype: 'e8m0', bytes: 1, group: 32 } },
  nvfp4: { values: 'fp4e2m1', bits: 4, scales: { dtype: 'fp8e4m3', bytes: 1, group: 16 } },
}
const formatNames = Object.keys(storages)

interface Case {
  readonly shape: { numTokens: number[]; hidden: number; topk: number; numExperts: number; seed: number }
  readonly format: string
  readonly protocol: 'rank' | 'expert'
  readonly layout: RecvLayout
  readonly weighted: boolean
  readonly useLogfmt: boolean
  readonly hooks: boolean
}

function caseOf(seed: number): Case {
  const random = randomNumbers(seed)
  const upTo = (limit: number): number => Math.floor(random() * (limit + 1))
  const protocol = upTo(1) === 1 ? 'rank' : 'expert'
  const format = formatNames[upTo(formatNames.length - 1)]!
  return {
    shape: {
      ...{ numTokens: Array.from({ length: numRanks }, () => upTo(most.maxTokensPerRank)), seed },
      ...{ hidden: wholeRows(format, 16 * (1 + upTo(9))), topk: 1 + upTo(3), numExperts: 1 + upTo(7) },
    },
    ...{ format, protocol, layout: protocol === 'rank' && upTo(2) === 0 ? 'rank-major' : 'expert-major' },
    ...{ weighted: protocol === 'rank' && upTo(1) === 1, useLogfmt: upTo(2) === 0, hooks: upTo(1) === 1 },
  }
}

/** Room for the results of all repeats, side by side. */
class History {
  readonly tensor: Tensor

  constructor(
    readonly shape: readonly number[],
    readonly dtype: DType,
  ) {
    this.tensor = Tensor.empty([repeats, ...shape], dtype, device)
  }

  of(repeat: number): Tensor {
    return this.tensor.slice(repeat, repeat + 1).reshape(this.shape)
  }

  /** Bytes of each repeat. */
  async read(): Promise<Uint8Array[]> {
    const values = (await this.tensor.read()) as Uint8Array
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
    const length = bytes.length / repeats
    return Array.from({ length: repeats }, (_, repeat) => bytes.subarray(repeat * length, (repeat + 1) * length))
  }
}

/** Room for the scales of all repeats, each as dispatch takes it. */
class ScaleHistory extends History {
  constructor(
    readonly rows: readonly [blocks: number, rows: number, columns: number],
    dtype: DType,
    readonly columnMajor: boolean,
  ) {
    const [blocks, ofBlock, columns] = rows
    super(columnMajor ? [blocks, columns, ofBlock] : rows, dtype)
  }

  override of(repeat: number): Tensor {
    const stored = super.of(repeat)
    if (!this.columnMajor) return stored
    const [, ofBlock, columns] = this.rows
    const { memory, byteOffset, dtype } = stored
    return new Tensor({ memory, byteOffset, dtype, shape: this.rows, strides: [columns * ofBlock, 1, ofBlock] })
  }
}

/** All repeats of a case on one rank, one behind the other without a wait, and a hash of what each gave. */
async function hashesOf({ rank, stream }: Rank, buffer: LowLatencyBuffer, c: Case, input: Input): Promise<string[]> {
  const { shape, format, layout, weighted, useLogfmt, hooks } = c
  const { hidden, numExperts, topk } = shape
  const rankMajor = layout === 'rank-major'
  const local = Math.floor(numExperts / numRanks) + (rank < numExperts % numRanks ? 1 : 0)
  const blocks = rankMajor ? numRanks : local
  const rows = rankMajor ? most.maxTokensPerRank : numRanks * most.maxTokensPerRank
  const storage = storages[format]!
  const columns = storage.scales ? Math.ceil(hidden / storage.scales.group) : 0
  // Those of fp8 are column-major, so that rows are next to each other.
  const columnMajor = format.startsWith('fp8')
  const { x, topkIdx, topkWeights } = toTensors(input, shape, shape.seed % 2 === 0 ? 'i32' : 'i64')
  const received = new History([blocks, rows, hidden], storage.values)
  const scales = storage.scales && new ScaleHistory([blocks, rows, columns], storage.scales.dtype, columnMajor)
  const counts = new History([blocks], 'i32')
  const srcInfo = new History([blocks, rows], 'i32')
  const ids = rankMajor ? new History([blocks, rows, topk], 'i32') : undefined
  const weights = rankMajor && weighted ? new History([blocks, rows, topk], 'f32') : undefined
  const combined = new History([input.x.length, hidden], 'bf16')
  // What rows that were cast are answered with: the same in every repeat, and of no meaning.
  const answers = Tensor.zeros([blocks, rows, hidden], 'bf16', device)
  const random = randomNumbers(shape.seed)
  const values = Array.from({ length: answers.numel }, () => random() - 0.5)
  copyTensor(Tensor.from(values, answers.shape, 'bf16'), answers, { stream })
  const common = { numExperts, stream, layout, returnRecvHook: hooks, ...optionsOf(format) }
  for (let repeat = 0; repeat < repeats; repeat++) {
    const { packedRecvX, handle, hook, recvTopkIdx, recvTopkWeights } = buffer.lowLatencyDispatch(x, topkIdx, {
      ...{ ...common, slot: repeat % 2, ...(weighted && { topkWeights }) },
      out: {
        ...{ packedRecvX: received.of(repeat), packedRecvCount: counts.of(repeat) },
        ...(scales && { packedRecvXScales: scales.of(repeat) }),
      },
    })
    hook?.()
    copyTensor(handle.srcInfo, srcInfo.of(repeat), { stream })
    if (ids) copyTensor(recvTopkIdx!, ids.of(repeat), { stream })
    if (weights) copyTensor(recvTopkWeights!, weights.of(repeat), { stream })
    const y = storage.scales ? answers : packedRecvX
    const late = weighted || rankMajor ? undefined : topkWeights
    const out = combined.of(repeat)
    buffer.lowLatencyCombine(y, topkIdx, late, handle, { stream, out, useLogfmt, returnRecvHook: hooks }).hook?.()
  }
  await stream.synchronize()
  const [x8, scale8, count8, src8, id8, weight8, sum8] = await Promise.all(
    [received, scales, counts, srcInfo, ids, weights, combined].map((history) => history?.read()),
  )
  return Array.from({ length: repeats }, (_, repeat) => {
    const hash = createHash('sha1').update(count8![repeat]!).update(sum8![repeat]!)
    // Written also where no row is.
    for (const whole of [id8, weight8]) if (whole) hash.update(whole[repeat]!)
    const count = new Int32Array(count8![repeat]!.slice().buffer)
    // Rows past a count are undefined.
    for (let block = 0; block < blocks; block++) {
      const rowsOf = (bytes: Uint8Array, at: number, size: number): Uint8Array =>
        bytes.subarray(at * rows * size, (at * rows + count[block]!) * size)
      hash.update(rowsOf(x8![repeat]!, block, (hidden * storage.bits) / 8)).update(rowsOf(src8![repeat]!, block, 4))
      if (!storage.scales) continue
      const { bytes } = storage.scales
      if (!columnMajor) {
        hash.update(rowsOf(scale8![repeat]!, block, columns * bytes))
        continue
      }
      for (let column = 0; column < columns; column++)
        hash.update(rowsOf(scale8![repeat]!, block * columns + column, bytes))
    }
    return hash.digest('hex')
  })
}

// Buffers live through all seeds and are never cleaned: each case finds what cases of other shapes left.
test('20 repeats of each of 1000 seeds give the same hash', async () => {
  await withWorld(numRanks, { ...most, protocol: 'rank' }, async (ranks) => {
    const perExpert = await Promise.all(
      ranks.map(({ group }) => LowLatencyBuffer.create(group, { device, ...most, protocol: 'expert' })),
    )
    const firsts = new Set<string>()
    for (let seed = 0; seed < seeds; seed++) {
      const c = caseOf(seed)
      const inputs = randomInputs(c.shape)
      const hashes = await Promise.all(
        ranks.map((rank, index) =>
          hashesOf(rank, c.protocol === 'rank' ? rank.buffer : perExpert[index]!, c, inputs[index]!),
        ),
      )
      for (const [rank, ofRank] of hashes.entries()) {
        expect(new Set(ofRank).size, `hashes of rank ${rank} with seed ${seed}`).toBe(1)
      }
      firsts.add(hashes.map(([first]) => first).join())
    }
    // Hashes that say anything differ from seed to seed; a few cases may have nothing to send.
    expect(firsts.size).toBeGreaterThan(seeds * 0.9)
    for (const buffer of perExpert) buffer.close()
  })
}, 240_000)
