import { describe, expect, it } from 'vitest'
import { denseReference, type DenseReferenceOptions } from '../../src/check/dense-reference.js'
import { createMatmul } from '../../src/check/matmul.js'
import { maxRelError } from '../../src/check/max-rel-error.js'
import { fillFromTable, normalTable } from '../../src/random/normal-values.js'
import { randomStream } from '../../src/random/random-stream.js'
import type { ExpertWeights } from '../../src/weights/moe-weights.js'

const hidden = 6
const intermediate = 4

function values(length: number, label: string): Float32Array {
  const result = new Float32Array(length)
  fillFromTable(result, { table: normalTable(1), stream: randomStream(9, label), first: 0 })
  return result
}

const made = new Map<number | 'shared', ExpertWeights>()

function weightsOf(expert: number | 'shared'): ExpertWeights {
  const weights = made.get(expert) ?? {
    w13: values(2 * intermediate * hidden, `w13 ${expert}`),
    w2: values(hidden * intermediate, `w2 ${expert}`),
  }
  made.set(expert, weights)
  return weights
}

/** One row through one expert, written out. */
function expertRow(row: Float32Array, { w13, w2 }: ExpertWeights): number[] {
  const product = (matrix: Float32Array, at: number, vector: ArrayLike<number>) => {
    let sum = 0
    for (let i = 0; i < vector.length; i++) sum += matrix[at * vector.length + i]! * vector[i]!
    return sum
  }
  const activated = Array.from({ length: intermediate }, (_, i) => {
    const gate = product(w13, i, row)
    return (gate / (1 + Math.exp(-gate))) * product(w13, intermediate + i, row)
  })
  return Array.from({ length: hidden }, (_, k) => product(w2, k, activated))
}

/** The whole layer, token by token and slot by slot. */
function naive({ x, topk, topkIdx, topkWeights, sharedExpert }: DenseReferenceOptions): Float32Array {
  const result = new Float32Array(x.length)
  for (let token = 0; token < x.length / hidden; token++) {
    const row = x.subarray(token * hidden, (token + 1) * hidden)
    const sum = sharedExpert === undefined ? new Array<number>(hidden).fill(0) : expertRow(row, sharedExpert)
    for (let slot = token * topk; slot < (token + 1) * topk; slot++) {
      if (topkIdx[slot] === -1) continue
      for (const [k, value] of expertRow(row, weightsOf(topkIdx[slot]!)).entries())
        sum[k]! += topkWeights[slot]! * value
    }
    result.set(sum, token * hidden)
  }
  return result
}

function layer(topkIdx: number[], topk: number): DenseReferenceOptions {
  return {
    x: values((topkIdx.length / topk) * hidden, 'x'),
    hidden,
    topk,
    topkIdx: Int32Array.from(topkIdx),
    topkWeights: values(topkIdx.length, 'weights'),
    loadExpert: (expert) => Promise.resolve(weightsOf(expert)),
  }
}

const manyTokens = Array.from({ length: 2500 * 2 }, (_, slot) => (slot % 2 === 0 ? 1 : slot % 3))

describe('denseReference', () => {
  it.each<[string, DenseReferenceOptions]>([
    ['one token', layer([2], 1)],
    ['several tokens and experts', layer([0, 1, 2, 3, 1, 0, 3, 2], 2)],
    ['slots without an expert', layer([-1, 1, 2, -1, -1, -1], 2)],
    ['an expert twice in a token', layer([1, 1, 0, 1, 2, 1], 3)],
    ['a shared expert', { ...layer([0, -1, 1], 1), sharedExpert: weightsOf('shared') }],
    ['more rows for one expert than go at a time', layer(manyTokens, 2)],
  ])('agrees with plain loops: %s', async (_title, options) => {
    expect(maxRelError(await denseReference(options), naive(options))).toBeLessThan(1e-5)
  })

  it('agrees with itself on both engines', async () => {
    const options = layer([0, 1, 2, 3, 1, 0], 3)
    const matmul = await createMatmul({ engine: 'typescript' })
    const plain = await denseReference({ ...options, matmul })
    expect(maxRelError(await denseReference(options), plain)).toBeLessThan(1e-5)
  })

  it('gives zeros for tokens without experts and nothing for no tokens, loading nothing', async () => {
    const loadExpert = () => Promise.reject(new Error('must not be asked for'))
    expect([...(await denseReference({ ...layer([-1, -1], 1), loadExpert }))]).toEqual(new Array(2 * hidden).fill(0))
    expect(await denseReference({ ...layer([], 4), loadExpert })).toHaveLength(0)
  })

  it('asks for every named expert once, one at a time in ascending order, and tells how far it is', async () => {
    const events: string[] = []
    await denseReference({
      ...layer([3, 1, 1, -1, 0, 3], 2),
      loadExpert: async (expert) => {
        events.push(`load ${expert}`)
        return weightsOf(expert)
      },
      onProgress: ({ done, total }) => events.push(`${done}/${total}`),
    })
    expect(events).toEqual(['0/3', 'load 0', '1/3', 'load 1', '2/3', 'load 3', '3/3'])
  })

  it('stops when it is aborted', async () => {
    const controller = new AbortController()
    const loaded: number[] = []
    const running = denseReference({
      ...layer([0, 1, 2], 1),
      loadExpert: async (expert) => {
        loaded.push(expert)
        controller.abort()
        return weightsOf(expert)
      },
      signal: controller.signal,
    })
    await expect(running).rejects.toMatchObject({ code: 'ERR_MOE_EP_ABORTED' })
    expect(loaded).toEqual([0])
  })

  it.each([
    ['x', { x: new Float32Array(hidden + 1) }],
    ['topkIdx', { topkIdx: new Int32Array(3) }],
    ['topkWeights', { topkWeights: new Float32Array(1) }],
    ['hidden', { hidden: 0 }],
    ['topk', { topk: 1.5 }],
  ])('refuses a wrong %s', async (argument, wrong) => {
    await expect(denseReference({ ...layer([0, 1], 2), ...wrong })).rejects.toMatchObject({
      code: 'ERR_MOE_EP_ARGUMENT',
      details: { argument },
    })
  })
})
