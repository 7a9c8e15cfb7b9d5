import { readFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { type MakeWeightsOptions, makeWeights } from '../../src/weights/make-weights.js'
import { loadMoeWeights, openMoeWeights } from '../../src/weights/moe-weights.js'
import { openSafetensors } from '../../src/weights/safetensors-reader.js'
import { type TensorSource, writeSafetensors } from '../../src/weights/safetensors-writer.js'
import { useTemporaryFolder } from '../temporary-folder.js'

const pathOf = useTemporaryFolder()
const sizes = { hidden: 24, intermediate: 10, experts: 5, seed: 7, dtype: 'bf16' } as const

async function make(name: string, options: Partial<MakeWeightsOptions> = {}): Promise<string> {
  const path = pathOf(name)
  await makeWeights({ ...sizes, path, ...options })
  return path
}

describe('makeWeights', () => {
  it('writes the tensors of a Qwen3-MoE layer, the numbers and the given text', async () => {
    const path = await make('names', { metadata: { model: 'demo', topk: '8' } })
    await using file = await openSafetensors(path)
    expect(file.metadata).toEqual({
      model: 'demo',
      topk: '8',
      hidden: '24',
      intermediate: '10',
      experts: '5',
      sharedExperts: '0',
      seed: '7',
    })
    expect(file.tensors.size).toBe(1 + 5 * 3)
    expect(file.tensors.get('model.layers.0.mlp.gate.weight')).toMatchObject({ dtype: 'BF16', shape: [5, 24] })
    for (const expert of [0, 4]) {
      const shapeOf = (projection: string) =>
        file.tensors.get(`model.layers.0.mlp.experts.${expert}.${projection}.weight`)?.shape
      expect(['gate_proj', 'up_proj', 'down_proj'].map(shapeOf)).toEqual([
        [10, 24],
        [10, 24],
        [24, 10],
      ])
    }
  })

  it('makes the same file from the same seed and another from another', async () => {
    const [first, again, other] = await Promise.all(
      [await make('one'), await make('two'), await make('three', { seed: 8 })].map((path) => readFile(path)),
    )
    expect(first!.equals(again!)).toBe(true)
    expect(first!.equals(other!)).toBe(false)
  })

  it('makes values of deviation 1/sqrt(inputs) that no two tensors share, in pieces that join well', async () => {
    // 1200 x 1000 elements are more than one piece.
    const path = await make('values', { hidden: 1000, intermediate: 1200, experts: 2, dtype: 'f32' })
    const { experts } = await loadMoeWeights(path, { experts: [0, 1] })
    const deviation = (values: Float32Array) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length)
    const { w13, w2 } = experts.get(0)!
    expect(deviation(w13) * Math.sqrt(1000)).toBeCloseTo(1, 2)
    expect(deviation(w2) * Math.sqrt(1200)).toBeCloseTo(1, 2)
    expect(deviation(w2.subarray(-100_000)) * Math.sqrt(1200)).toBeCloseTo(1, 1)
    const starts = [w13, w13.subarray(1_200_000), w13.subarray(2 ** 20), experts.get(1)!.w13].map((values) =>
      values.slice(0, 8).join(),
    )
    expect(new Set(starts).size).toBe(4)
  })

  it('tells how far it is', async () => {
    const seen: number[] = []
    await make('progress', { onProgress: ({ done, total }) => seen.push(done / total) })
    expect(seen[0]).toBe(0)
    expect(seen.at(-1)).toBe(1)
    expect(seen).toEqual([...seen].sort((a, b) => a - b))
  })

  it.each([
    ['hidden', 0],
    ['intermediate', 2.5],
    ['experts', -1],
    ['sharedExperts', 2],
    ['layer', -1],
    ['naming', 'moe'],
    ['seed', 0.5],
    ['dtype', 'f16'],
  ])('refuses a wrong %s', async (argument, value) => {
    await expect(make('wrong', { [argument]: value })).rejects.toMatchObject({
      code: 'ERR_MOE_EP_ARGUMENT',
      details: { argument },
    })
  })
})

describe('loadMoeWeights', () => {
  it('stacks gate rows, then up rows into w13 and reads only the experts asked for', async () => {
    const path = await make('load')
    const weights = await loadMoeWeights(path, { experts: [3, 1] })
    expect(weights).toMatchObject({ hidden: 24, intermediate: 10, numExperts: 5 })
    expect([...weights.experts.keys()]).toEqual([3, 1])
    expect(weights.sharedExpert).toBeUndefined()
    await using file = await openSafetensors(path)
    const tensor = (name: string) => file.readFloat32(`model.layers.0.mlp.${name}.weight`)
    expect(weights.gate).toEqual(await tensor('gate'))
    const { w13, w2 } = weights.experts.get(3)!
    expect(w13.subarray(0, 240)).toEqual(await tensor('experts.3.gate_proj'))
    expect(w13.subarray(240)).toEqual(await tensor('experts.3.up_proj'))
    expect(w2).toEqual(await tensor('experts.3.down_proj'))
  })

  it('serves a rank without experts, and the shared expert only where it is wanted', async () => {
    const path = await make('shared', { sharedExperts: 1 })
    const { experts, gate, sharedExpert } = await loadMoeWeights(path, { experts: [] })
    expect([experts.size, gate.length]).toEqual([0, 5 * 24])
    expect([sharedExpert!.w13.length, sharedExpert!.w2.length]).toEqual([2 * 10 * 24, 24 * 10])
    expect((await loadMoeWeights(path, { experts: [], sharedExpert: false })).sharedExpert).toBeUndefined()
  })

  it.each([5, -1, 0.5])('refuses expert %d of 5', async (expert) => {
    const path = await make('range')
    await expect(loadMoeWeights(path, { experts: [expert] })).rejects.toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT' })
  })

  it('stops when it is aborted', async () => {
    const path = await make('abort')
    const loading = loadMoeWeights(path, { experts: [0], signal: AbortSignal.abort() })
    await expect(loading).rejects.toMatchObject({ code: 'ERR_MOE_EP_ABORTED' })
  })

  const zeros = (name: string, shape: number[]): TensorSource => ({
    name: `model.layers.0.mlp.${name}.weight`,
    dtype: 'F32',
    shape,
    data: () => new Uint8Array(shape.reduce((a, b) => a * b, 4)),
  })
  const layer = [
    zeros('gate', [1, 4]),
    zeros('experts.0.gate_proj', [2, 4]),
    zeros('experts.0.up_proj', [2, 4]),
    zeros('experts.0.down_proj', [4, 2]),
  ]
  it.each(layer.map((tensor, index) => [tensor.name, index] as const))(
    'names %s when it is missing or has another shape',
    async (name, index) => {
      const path = pathOf('broken')
      for (const shape of [[3, 5], [4], [0, 4]]) {
        await writeSafetensors({ path, tensors: layer.with(index, { ...zeros('x', shape), name }) })
        await expect(loadMoeWeights(path, { experts: [0] })).rejects.toMatchObject({
          code: 'ERR_MOE_EP_FILE_FORMAT',
          message: expect.stringMatching(/model\.layers\.0\.mlp\..*weight is \[/),
        })
      }
      await writeSafetensors({ path, tensors: layer.toSpliced(index, 1) })
      await expect(loadMoeWeights(path, { experts: [0] })).rejects.toMatchObject({
        code: 'ERR_MOE_EP_FILE_FORMAT',
        message: expect.stringContaining(`has no tensor ${name}`),
      })
    },
  )

  it('opens a layer by number, or else the first one that has experts', async () => {
    const path = pathOf('layers')
    const inLayer = (number: number): TensorSource[] =>
      layer.map((tensor) => ({ ...tensor, name: tensor.name.replace('layers.0', `layers.${number}`) }))
    await writeSafetensors({ path, tensors: [...inLayer(11), ...inLayer(3)] })
    await using file = await openMoeWeights(path, { layer: 11 })
    const sizes = { hidden: 4, intermediate: 2, numExperts: 1, hasSharedExpert: false, hasCorrectionBias: false }
    expect(file).toMatchObject({ ...sizes, layer: 11 })
    await using first = await openMoeWeights(path)
    expect(first).toMatchObject({ ...sizes, layer: 3 })
    await expect(openMoeWeights(path, { layer: 0 })).rejects.toMatchObject({
      code: 'ERR_MOE_EP_FILE_FORMAT',
      message: expect.stringContaining('has no tensor model.layers.0.mlp.gate.weight'),
    })
  })
})
