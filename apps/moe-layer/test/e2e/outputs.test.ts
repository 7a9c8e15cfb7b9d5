import { readdirSync } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { stripVTControlCharacters } from 'node:util'
import { expect, it } from 'vitest'
import { jsonOf, small, useApp } from './app.js'

const app = useApp()
const stages = ['gate', 'exchange', 'dispatch', 'permute', 'experts', 'unpermute', 'combine', 'layer']

it('a file of make-weights runs as a model, in both dtypes, with its own sizes and top-k', async () => {
  for (const dtype of ['bf16', 'f32']) {
    const path = app.path(`${dtype}.safetensors`)
    const sizes = [
      '--hidden',
      '128',
      '--intermediate',
      '24',
      '--experts',
      '7',
      '--topk',
      '3',
      '--dtype',
      dtype,
      '--seed',
      '5',
    ]
    expect(await app.run(['make-weights', '--out', path, ...sizes])).toEqual({ exitCode: 0, stdout: '', stderr: '' })
    const end = await app.run(['--json', '--ranks', '3', '--tokens', '9', '--iters', '1', '--model', path])
    expect(jsonOf(end)).toMatchObject({ ok: true, model: path, hidden: 128, intermediate: 24, experts: 7, topK: 3 })
    const other = await app.run([
      '--json',
      '--ranks',
      '3',
      '--tokens',
      '9',
      '--iters',
      '1',
      '--model',
      path,
      '--topk',
      '7',
    ])
    expect(jsonOf(other)).toMatchObject({ ok: true, topK: 7 })
  }
  const sizeOf = async (dtype: string): Promise<number> => (await stat(app.path(`${dtype}.safetensors`))).size
  expect(await sizeOf('f32')).toBeGreaterThan(1.8 * (await sizeOf('bf16')))
})

it('made weights are kept and used again', async () => {
  const args = small({ ranks: 2, seed: 77 })
  const first = jsonOf(await app.run(args))
  const path = app.path('cache/weights/demo-h64-i32-e16-s77.safetensors')
  const { mtimeMs } = await stat(path)
  expect(jsonOf(await app.run(args)).maxRelError).toBe(first.maxRelError)
  expect((await stat(path)).mtimeMs).toBe(mtimeMs)
})

it('a table for people names every stage and the verdict', async () => {
  const args = small({ ranks: 3, tokens: '5,0,9' }).filter((flag) => flag !== '--json')
  const { exitCode, stdout, stderr } = await app.run(args)
  const report = stripVTControlCharacters(stdout)
  expect([exitCode, stderr]).toEqual([0, ''])
  expect(report).toContain('demo: 16 experts, top-4, hidden 64, intermediate 32, bf16')
  expect(report).toContain('3 ranks on cpu, 5, 0, 9 tokens')
  for (const stage of stages) expect(report).toMatch(new RegExp(`^${stage} +\\d+ +\\d+`, 'm'))
  expect(report).toMatch(/^ok: largest error .*; all passes bit-identical$/m)
})

it('a run leaves no temporary files, neither of its own nor of the libraries that it uses', async () => {
  // Some libraries keep quiet where they think that they are tested.
  const environment = { CI: '' }
  for (const flags of [[], ['--workers']]) {
    expect(jsonOf(await app.run([...small({ ranks: 2 }), ...flags], { environment })).ok).toBe(true)
    expect(readdirSync(app.temporary)).toEqual([])
  }
})

interface TraceEvent {
  readonly name: string
  readonly ph: string
  readonly pid: number
  readonly tid: number
  readonly ts?: number
  readonly dur?: number
  readonly args: { readonly name?: string; readonly pass?: number; readonly bytes?: number }
}

it('a trace holds every stage of every pass and rank, inside the span of its layer', async () => {
  const path = app.path('trace.json')
  const result = jsonOf(await app.run([...small({ ranks: 3, iters: 2, tokens: 32 }), '--trace', path]))
  expect(result.ok).toBe(true)
  const { traceEvents } = JSON.parse(await readFile(path, 'utf8')) as { traceEvents: TraceEvent[] }
  expect(traceEvents.filter(({ ph }) => ph === 'M').map(({ args }) => args.name)).toEqual([
    'rank 0',
    'rank 1',
    'rank 2',
  ])
  const spans = traceEvents.filter(({ ph }) => ph === 'X')
  for (let rank = 0; rank < 3; rank++) {
    for (let pass = 0; pass < 2; pass++) {
      const ofPass = spans.filter((span) => span.pid === rank && span.args.pass === pass)
      expect(new Set(ofPass.map(({ name }) => name))).toEqual(new Set(stages))
      const layer = ofPass.find(({ name }) => name === 'layer')!
      for (const { ts, dur, args } of ofPass) {
        expect(dur).toBeGreaterThanOrEqual(0)
        expect(ts).toBeGreaterThanOrEqual(layer.ts!)
        expect(ts! + dur!).toBeLessThanOrEqual(layer.ts! + layer.dur!)
        expect(args.bytes).toBeGreaterThanOrEqual(0)
      }
    }
  }
  expect(spans.every(({ ph }) => ph === 'X')).toBe(true)
})
