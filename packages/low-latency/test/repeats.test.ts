import { createHash } from 'node:crypto'
import { copyTensor, type DType, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { LowLatencyBuffer, type LowLatencyDispatchOptions } from '../src/index.js'
import { device, type Input, type Rank, randomInputs, randomNumbers, toTensors, withWorld } from './world.js'

const numRanks = 3
const repeats = 20
const seeds = 1000
const most = { hidden: 160, maxTokensPerRank: 3, maxTopk: 4 }
const rows = numRanks * most.maxTokensPerRank
const formats = [{ useFp8: false }, { useFp8: true }, { useFp8: true, useUe8m0: true }]
const bytesOf: Partial<Record<DType, number>> = { bf16: 2, fp8e4m3: 1, f32: 4, i32: 4 }

interface Case {
  readonly shape: { numTokens: number[]; hidden: number; topk: number; numExperts: number; seed: number }
  readonly format: (typeof formats)[number]
  readonly protocol: 'rank' | 'expert'
  readonly weighted: boolean
  readonly hooks: boolean
}

function caseOf(seed: number): Case {
  const random = randomNumbers(seed)
  const upTo = (limit: number): number => Math.floor(random() * (limit + 1))
  const protocol = upTo(1) === 1 ? 'rank' : 'expert'
  return {
    shape: {
      ...{ numTokens: Array.from({ length: numRanks }, () => upTo(most.maxTokensPerRank)), seed },
      ...{ hidden: 16 * (1 + upTo(9)), topk: 1 + upTo(3), numExperts: 1 + upTo(7) },
    },
    ...{ format: formats[upTo(2)]!, protocol, weighted: protocol === 'rank' && upTo(1) === 1, hooks: upTo(1) === 1 },
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

/** All repeats of a case on one rank, one behind the other without a wait, and a hash of what each gave. */
async function hashesOf({ rank, stream }: Rank, buffer: LowLatencyBuffer, c: Case, input: Input): Promise<string[]> {
  const { shape, format, weighted, hooks } = c
  const { hidden, numExperts } = shape
  const local = Math.floor(numExperts / numRanks) + (rank < numExperts % numRanks ? 1 : 0)
  const columns = format.useUe8m0 === true ? 1 : Math.ceil(hidden / 128)
  const { x, topkIdx, topkWeights } = toTensors(input, shape, shape.seed % 2 === 0 ? 'i32' : 'i64')
  const received = new History([local, rows, hidden], format.useFp8 ? 'fp8e4m3' : 'bf16')
  // Column-major, so that rows are next to each other.
  const scales = new History([local, columns, rows], format.useUe8m0 === true ? 'i32' : 'f32')
  const counts = new History([local], 'i32')
  const srcInfo = new History([local, rows], 'i32')
  const combined = new History([input.x.length, hidden], 'bf16')
  // What fp8 rows are answered with: the same in every repeat, and of no meaning.
  const answers = Tensor.zeros([local, rows, hidden], 'bf16', device)
  const random = randomNumbers(shape.seed)
  const values = Array.from({ length: answers.numel }, () => random() - 0.5)
  copyTensor(Tensor.from(values, answers.shape, 'bf16'), answers, { stream })
  for (let repeat = 0; repeat < repeats; repeat++) {
    const { memory, byteOffset, dtype } = scales.of(repeat)
    const strides = [columns * rows, 1, rows]
    const packedRecvXScales = new Tensor({ memory, byteOffset, dtype, shape: [local, rows, columns], strides })
    const options: LowLatencyDispatchOptions = {
      ...{ ...format, numExperts, stream, slot: repeat % 2, returnRecvHook: hooks, ...(weighted && { topkWeights }) },
      out: {
        ...{ packedRecvX: received.of(repeat), packedRecvCount: counts.of(repeat) },
        ...(format.useFp8 && { packedRecvXScales }),
      },
    }
    const { packedRecvX, handle, hook } = buffer.lowLatencyDispatch(x, topkIdx, options)
    hook?.()
    copyTensor(handle.srcInfo, srcInfo.of(repeat), { stream })
    const y = format.useFp8 ? answers : packedRecvX
    const weights = weighted ? undefined : topkWeights
    const out = combined.of(repeat)
    buffer.lowLatencyCombine(y, topkIdx, weights, handle, { stream, out, returnRecvHook: hooks }).hook?.()
  }
  await stream.synchronize()
  const [x8, scale8, count8, src8, sum8] = await Promise.all(
    [received, scales, counts, srcInfo, combined].map((history) => history.read()),
  )
  const rowBytes = hidden * bytesOf[received.dtype]!
  return Array.from({ length: repeats }, (_, repeat) => {
    const hash = createHash('sha1').update(count8![repeat]!).update(sum8![repeat]!)
    const count = new Int32Array(count8![repeat]!.slice().buffer)
    // Rows past an expert's count are undefined.
    for (let expert = 0; expert < local; expert++) {
      const rowsOf = (bytes: Uint8Array, block: number, size: number): Uint8Array =>
        bytes.subarray(block * rows * size, (block * rows + count[expert]!) * size)
      hash.update(rowsOf(x8![repeat]!, expert, rowBytes)).update(rowsOf(src8![repeat]!, expert, 4))
      for (let column = 0; format.useFp8 && column < columns; column++)
        hash.update(rowsOf(scale8![repeat]!, expert * columns + column, 4))
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
