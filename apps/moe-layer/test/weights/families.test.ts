import { encode, f32ToBf16Array } from '@moe-ep/core'
import { describe, expect, it } from 'vitest'
import { modelPresets } from '../../src/presets/presets.js'
import { dequantizeBlocks, quantizeBlocks } from '../../src/weights/block-quantization.js'
import { makeWeights, madeWeightsBytes } from '../../src/weights/make-weights.js'
import { loadMoeWeights, openMoeWeights } from '../../src/weights/moe-weights.js'
import { openSafetensors } from '../../src/weights/safetensors-reader.js'
import { type TensorSource, writeSafetensors } from '../../src/weights/safetensors-writer.js'
import { useTemporaryFolder } from '../temporary-folder.js'

const pathOf = useTemporaryFolder()
const small = { hidden: 264, intermediate: 136, experts: 4, seed: 3 }

/** Bit for bit; comparing element by element takes a second for each matrix. */
function expectSame(actual: Float32Array | undefined, expected: Float32Array | undefined): void {
  const bytesOf = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength)
  expect(actual?.length).toBe(expected?.length)
  if (actual !== undefined) expect(Buffer.compare(bytesOf(actual), bytesOf(expected!))).toBe(0)
}

async function makeLike(model: string, dtype: 'bf16' | 'f32' | 'fp8'): Promise<string> {
  const { sharedExperts, correctionBias, naming, firstMoeLayer: layer } = modelPresets.get(model)!
  const path = pathOf(`${model}-${dtype}`)
  await makeWeights({ path, ...small, sharedExperts, correctionBias, naming, layer, dtype })
  return path
}

describe('files of each family', () => {
  it.each([
    ['mixtral-8x7b', 'model.layers.0.block_sparse_moe', ['w1', 'w3', 'w2'], []],
    ['qwen3-30b-a3b', 'model.layers.0.mlp', ['gate_proj', 'up_proj', 'down_proj'], []],
    [
      'deepseek-v3',
      'model.layers.3.mlp',
      ['gate_proj', 'up_proj', 'down_proj'],
      ['gate.e_score_correction_bias', 'shared_experts'],
    ],
    [
      'kimi-k2',
      'model.layers.1.mlp',
      ['gate_proj', 'up_proj', 'down_proj'],
      ['gate.e_score_correction_bias', 'shared_experts'],
    ],
    [
      'glm-4.5',
      'model.layers.3.mlp',
      ['gate_proj', 'up_proj', 'down_proj'],
      ['gate.e_score_correction_bias', 'shared_experts'],
    ],
  ])('%s: written and read under its names', async (model, prefix, projections, extra) => {
    const path = await makeLike(model, 'bf16')
    await using file = await openSafetensors(path)
    const shared = extra.includes('shared_experts') ? [`${prefix}.shared_experts`] : []
    const owners = [...Array.from({ length: 4 }, (_, id) => `${prefix}.experts.${id}`), ...shared]
    expect([...file.tensors.keys()].sort()).toEqual(
      [
        `${prefix}.gate.weight`,
        ...extra.filter((name) => name !== 'shared_experts').map((name) => `${prefix}.${name}`),
        ...owners.flatMap((owner) => projections.map((projection) => `${owner}.${projection}.weight`)),
      ].sort(),
    )
    const weights = await loadMoeWeights(path, { experts: [2] })
    const tensor = (name: string) => file.readFloat32(`${prefix}.${name}.weight`)
    const [gate, up, down] = projections
    const { w13, w2 } = weights.experts.get(2)!
    expectSame(w13.subarray(0, w2.length), await tensor(`experts.2.${gate}`))
    expectSame(w13.subarray(w2.length), await tensor(`experts.2.${up}`))
    expectSame(w2, await tensor(`experts.2.${down}`))
    expectSame(weights.sharedExpert?.w2, shared.length > 0 ? await tensor(`shared_experts.${down}`) : undefined)
    const bias = `${prefix}.gate.e_score_correction_bias`
    expectSame(weights.correctionBias, shared.length > 0 ? await file.readFloat32(bias) : undefined)
    if (shared.length > 0) expect(file.tensors.get(bias)).toMatchObject({ dtype: 'F32', shape: [4] })
  })

  it('fp8 files hold the f32 values quantised by blocks, scales beside them; gate and bias stay wide', async () => {
    const fp8 = await makeLike('deepseek-v3', 'fp8')
    const [narrow, wide] = await Promise.all(
      [fp8, await makeLike('deepseek-v3', 'f32')].map((path) => loadMoeWeights(path, { experts: [1] })),
    )
    await using file = await openSafetensors(fp8)
    const name = 'model.layers.3.mlp.experts.1.up_proj.weight'
    expect(file.tensors.get(name)).toMatchObject({ dtype: 'F8_E4M3', shape: [136, 264] })
    expect(file.tensors.get(`${name}_scale_inv`)).toMatchObject({ dtype: 'F32', shape: [2, 3] })
    expect(file.tensors.get('model.layers.3.mlp.gate.weight')).toMatchObject({ dtype: 'BF16' })
    expect(file.tensors.get('model.layers.3.mlp.shared_experts.down_proj.weight')).toMatchObject({ dtype: 'F8_E4M3' })
    expect(file.tensors.has('model.layers.3.mlp.gate.weight_scale_inv')).toBe(false)
    const sizes = { rows: 264, columns: 136 }
    const expected = dequantizeBlocks(quantizeBlocks(wide!.experts.get(1)!.w2, sizes), sizes)
    expectSame(narrow!.experts.get(1)!.w2, expected)
    expectSame(narrow!.correctionBias, wide!.correctionBias)
    const { w13 } = narrow!.sharedExpert!
    expect(Math.sqrt(w13.reduce((sum, value) => sum + value * value, 0) / w13.length) * Math.sqrt(264)).toBeCloseTo(
      1,
      1,
    )
  })

  it('counts the bytes of a file before it is made', async () => {
    for (const dtype of ['bf16', 'f32', 'fp8'] as const) {
      await using file = await openSafetensors(await makeLike('glm-4.5', dtype))
      const bytes = [...file.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0)
      const { sharedExperts, correctionBias } = modelPresets.get('glm-4.5')!
      expect(madeWeightsBytes({ ...small, sharedExperts, correctionBias, dtype })).toBe(bytes)
    }
  })

  it('refuses names that a family does not have', async () => {
    const wrong = { ...small, path: pathOf('wrong'), dtype: 'bf16', naming: 'block_sparse_moe' } as const
    for (const extra of [{ sharedExperts: 1 as const }, { correctionBias: true }]) {
      await expect(makeWeights({ ...wrong, ...extra })).rejects.toMatchObject({ details: { argument: 'naming' } })
    }
  })
})

describe('MoeWeightsFile', () => {
  it('reads an expert into memory that is there already', async () => {
    await using file = await openMoeWeights(await makeLike('mixtral-8x7b', 'fp8'))
    const elements = small.hidden * small.intermediate
    const into = { w13: new Float32Array(2 * elements), w2: new Float32Array(elements) }
    expect(await file.readExpert(3, { into })).toBe(into)
    const { w13, w2 } = await file.readExpert(3)
    expectSame(into.w13, w13)
    expectSame(into.w2, w2)
    await expect(file.readExpert(3, { into: { ...into, w2: new Float32Array(1) } })).rejects.toMatchObject({
      code: 'ERR_MOE_EP_ARGUMENT',
      details: { argument: 'into.w2' },
    })
  })
})

describe('hostile fp8 files', () => {
  const prefix = 'model.layers.0.mlp'
  const name = `${prefix}.experts.0.gate_proj.weight`
  const source = (tensor: string, dtype: TensorSource['dtype'], shape: number[], bytes: Uint8Array): TensorSource => ({
    ...{ name: tensor, dtype, shape },
    data: () => bytes,
  })
  const floats = (tensor: string, shape: number[], value = 1): TensorSource => {
    const values = new Float32Array(shape.reduce((a, b) => a * b)).fill(value)
    return source(tensor, 'F32', shape, new Uint8Array(values.buffer))
  }
  const bits = encode('fp8e4m3', [1, -2, 448, 0.5, 0, 2 ** -9, -0, 3]) as Uint8Array
  const layer = [
    floats(`${prefix}.gate.weight`, [1, 4]),
    source(name, 'F8_E4M3', [2, 4], bits),
    floats(`${prefix}.experts.0.up_proj.weight`, [2, 4]),
    floats(`${prefix}.experts.0.down_proj.weight`, [4, 2]),
  ]
  const load = async (...more: TensorSource[]) => {
    const path = pathOf('hostile')
    await writeSafetensors({ path, tensors: [...layer, ...more] })
    return loadMoeWeights(path, { experts: [0] })
  }
  const bf16 = (value: number): Uint8Array => new Uint8Array(f32ToBf16Array(Float32Array.of(value)).buffer)

  it('takes scales as f32 and as bf16', async () => {
    const expected = [0.5, -1, 224, 0.25, 0, 2 ** -10, -0, 1.5]
    for (const scale of [
      floats(`${name}_scale_inv`, [1, 1], 0.5),
      source(`${name}_scale_inv`, 'BF16', [1, 1], bf16(0.5)),
    ]) {
      const { experts } = await load(scale)
      expect([...experts.get(0)!.w13.subarray(0, 8)]).toEqual(expected)
    }
  })

  it.each([
    ['no scales', [], `has no tensor ${name}_scale_inv`],
    ['too many scales', [floats(`${name}_scale_inv`, [2, 1])], 'expected \\[1, 1\\]'],
    ['scales without a shape', [floats(`${name}_scale_inv`, [1])], 'is \\[1\\]; expected \\[1, 1\\]'],
    ['scales of another dtype', [source(`${name}_scale_inv`, 'U8', [1, 1], new Uint8Array(1))], 'is U8'],
    [
      'a bias of another size',
      [floats(`${name}_scale_inv`, [1, 1]), floats(`${prefix}.gate.e_score_correction_bias`, [3])],
      'e_score_correction_bias is \\[3\\]; expected \\[1\\]',
    ],
  ])('refuses %s', async (_title, more, message) => {
    await expect(load(...more)).rejects.toMatchObject({
      code: 'ERR_MOE_EP_FILE_FORMAT',
      message: expect.stringMatching(message),
    })
  })
})
