import { describe, expect, it } from 'vitest'
import { maxTopk } from '../../src/gates/gate.js'
import { modelPresets } from '../../src/presets/presets.js'

const presets = [...modelPresets.values()]

describe('modelPresets', () => {
  it('names each preset by its key', () => {
    expect([...modelPresets.keys()]).toEqual([
      ...['demo', 'deepseek-v3', 'kimi-k2', 'qwen3-235b-a22b', 'qwen3-30b-a3b', 'mixtral-8x7b', 'glm-4.5'],
    ])
    for (const [key, { name }] of modelPresets) expect(name).toBe(key)
  })

  it.each(presets)('$name can be run: gate, names and sizes fit one another', (preset) => {
    const { shape, gate, correctionBias, sharedExperts, naming } = preset
    expect(shape.topk).toBeLessThanOrEqual(maxTopk(gate, shape.experts))
    expect(shape.hidden % 8).toBe(0)
    expect(gate.renormalize).toBe(true)
    // Only sigmoid gates have a bias, and Mixtral's family has names for neither bias nor shared expert.
    expect(correctionBias).toBe(gate.scoring === 'sigmoid')
    if (naming === 'block_sparse_moe') expect([correctionBias, sharedExperts]).toEqual([false, 0])
  })

  it('has the published numbers of weights in one layer', () => {
    const billions = (name: string): number => {
      const { hidden, intermediate, experts } = modelPresets.get(name)!.shape
      return (3 * hidden * intermediate * experts) / 1e9
    }
    // GiB of expert weights a layer, as their native formats store them: 1 byte each for fp8, 2 for bf16.
    expect((billions('deepseek-v3') * 1e9) / 2 ** 30).toBeCloseTo(10.5, 2)
    expect((billions('kimi-k2') * 1e9) / 2 ** 30).toBeCloseTo(15.75, 2)
    expect((billions('qwen3-235b-a22b') * 2e9) / 2 ** 30).toBeCloseTo(4.5, 2)
    expect((billions('qwen3-30b-a3b') * 2e9) / 2 ** 30).toBeCloseTo(1.125, 3)
    expect((billions('mixtral-8x7b') * 2e9) / 2 ** 30).toBeCloseTo(2.625, 3)
    expect((billions('glm-4.5') * 2e9) / 2 ** 30).toBeCloseTo(7.03, 2)
  })

  it('limits tokens to groups only in DeepSeek-V3', () => {
    const limited = presets
      .filter(({ gate, shape }) => maxTopk(gate, shape.experts) < shape.experts)
      .map(({ name }) => name)
    expect(limited).toEqual(['deepseek-v3'])
    expect(maxTopk(modelPresets.get('deepseek-v3')!.gate, 256)).toBe(128)
  })
})
