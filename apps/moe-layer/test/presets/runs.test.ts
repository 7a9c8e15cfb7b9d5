import { describe, expect, it } from 'vitest'
import { modelPresets } from '../../src/presets/presets.js'
import { openMoeWeights } from '../../src/weights/moe-weights.js'
import { makeWeights } from '../../src/weights/make-weights.js'
import { jsonOf, type Refusal, small, useApp } from '../e2e/app.js'

const app = useApp()
const sizes = { hidden: 136, intermediate: 130, experts: 32, topk: 4 }
const tokens = { tokens: '9,0,4' }
const onThree = ['--ranks', '3']

describe('each model, with smaller sizes', () => {
  const names = [...modelPresets.keys()]
  const cases = names.flatMap((model) =>
    ['uniform', 'skewed', 'hot:1', 'empty:2'].map((routing) => [model, routing] as const),
  )
  it.each(cases)('%s with %s routing agrees with the dense computation', async (model, routing) => {
    const end = await app.run([...small({ ...sizes, ...tokens }), ...onThree, '--model', model, '--routing', routing])
    const result = jsonOf(end)
    expect(result).toMatchObject({ ok: true, model, experts: 32, topK: 4, deterministic: true })
    const hasShared = modelPresets.get(model)!.sharedExperts === 1
    expect(result.stages.some(({ name }) => name === 'shared')).toBe(hasShared)
  })
})

describe('a run that does not fit', () => {
  it.each(['deepseek-v3', 'kimi-k2'])(
    '%s is refused with the bytes it needs and the bytes there are',
    async (model) => {
      // Enough tokens that no machine has the memory for their rows.
      const end = await app.run(['--json', '--ranks', '2', '--tokens', '16000000', '--model', model])
      const { ok, error } = jsonOf<Refusal>(end)
      expect([ok, error.code, end.exitCode]).toEqual([false, 'ERR_MOE_EP_OUT_OF_MEMORY', 1])
      expect(error.message).toMatch(
        new RegExp(`^${model} needs .* \\(\\d+ bytes\\) of memory; .* \\(\\d+ bytes\\) are available`),
      )
    },
  )
})

describe('weights files of a model', () => {
  const asFlags = Object.entries(sizes).flatMap(([name, value]) => [`--${name}`, String(value)])
  const run = (path: string, ...args: string[]) =>
    app.run(['--json', ...onThree, '--tokens', '5', '--iters', '1', '--model', path, ...args])

  it.each(['bf16', 'f32', 'fp8'])('made as %s they run by themselves, as the model that they are of', async (dtype) => {
    const path = app.path(`glm-${dtype}.safetensors`)
    const made = await app.run([
      'make-weights',
      '--preset',
      'glm-4.5',
      '--out',
      path,
      '--dtype',
      dtype,
      '--layer',
      '7',
      ...asFlags,
    ])
    expect([made.exitCode, made.stderr]).toEqual([0, ''])
    await using file = await openMoeWeights(path)
    expect(file).toMatchObject({ layer: 7, hasCorrectionBias: true, sharedIntermediate: 130 })
    const { ok, stages } = jsonOf(await run(path))
    expect([ok, stages.some(({ name }) => name === 'shared')]).toEqual([true, true])
    expect(jsonOf(await run(path, '--layer', '7')).ok).toBe(true)
    expect(jsonOf<Refusal>(await run(path, '--layer', '6')).error).toMatchObject({ code: 'ERR_MOE_EP_FILE_FORMAT' })
  })

  it('with a correction bias need the name of their model, if they do not have it', async () => {
    const path = app.path('nameless.safetensors')
    await makeWeights({ path, ...sizes, sharedExperts: 1, correctionBias: true, seed: 1, dtype: 'fp8', layer: 3 })
    expect(jsonOf<Refusal>(await run(path)).error).toMatchObject({
      code: 'ERR_MOE_EP_CONFIG',
      message: expect.stringContaining('--preset'),
    })
    expect(jsonOf(await run(path, '--preset', 'deepseek-v3'))).toMatchObject({ ok: true, topK: 8 })
    expect(jsonOf<Refusal>(await run(path, '--preset', 'mixtral-8x7b')).error.message).toContain('correction bias')
  })

  it.each([
    [['--preset', 'gpt', '--model', 'x.safetensors'], '--preset'],
    [['--preset', 'demo', '--model', 'demo'], '--preset'],
    [['--layer', '-1'], '--layer'],
    [['--layer', 'first'], '--layer'],
    [['--model', 'constructor'], '--model'],
  ])('refuses %j', async (args, part) => {
    const { error } = jsonOf<Refusal>(await app.run(['--json', ...args]))
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_CONFIG', message: expect.stringContaining(part) })
  })

  it('of DeepSeek-V3 refuse a top-k that the kept groups cannot fill', async () => {
    const end = await app.run(['--json', '--model', 'deepseek-v3', '--experts', '16', '--topk', '9', '--hidden', '64'])
    expect(jsonOf<Refusal>(end).error).toMatchObject({
      code: 'ERR_MOE_EP_CONFIG',
      message: expect.stringContaining('1 to 8'),
    })
  })
})
