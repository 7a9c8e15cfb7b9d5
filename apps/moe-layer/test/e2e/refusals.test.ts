import { readFile, truncate, writeFile } from 'node:fs/promises'
import { beforeAll, describe, expect, it } from 'vitest'
import { type AppEnd, jsonOf, type Refusal, small, useApp } from './app.js'

const app = useApp()

/** Expects that the app refused, in both forms: the object on standard output and one line on standard error. */
function expectRefusal(end: AppEnd, code: string, part: string): void {
  const { ok, error } = jsonOf<Refusal>(end)
  expect(ok).toBe(false)
  expect(error.code).toBe(code)
  expect(error.message).toContain(part)
  expect(end.stderr).toContain(`moe-layer: ${code}: `)
  expect(end.exitCode).toBe(1)
}

const config = 'ERR_MOE_EP_CONFIG'
const unsupported = 'ERR_MOE_EP_UNSUPPORTED'

it.each<[string[], string, string]>([
  [['--ranks', '0'], config, '--ranks'],
  [['--ranks', '4097'], config, '--ranks'],
  [['--ranks', '1.5'], config, '--ranks'],
  [['--ranks', 'many'], config, '--ranks'],
  [['--device', 'tpu'], unsupported, '--device tpu'],
  [['--mode', 'fast'], unsupported, '--mode fast'],
  [['--mode', 'll', '--tokens', '1025'], config, '--tokens: expected at most 1024'],
  [['--mode', 'll', '--tokens', '0,0,0,0,0,0,0,1025'], config, '--tokens: expected at most 1024'],
  [['--mode', 'll', '--overlap', '2', '--tokens', '2049'], config, '--tokens: expected at most 2048'],
  [['--mode', 'll', '--protocol', 'token'], unsupported, '--protocol token'],
  [['--protocol', 'rank'], config, '--protocol: expected --mode ll'],
  [['--mode', 'll', '--dtype', 'fp8', '--hidden', '24'], config, '--hidden'],
  [['--graph'], unsupported, '--graph with --mode ht'],
  [['--mode', 'll', '--graph', '--overlap', '2'], config, '--overlap'],
  [['--overlap', '0'], config, '--overlap'],
  [['--overlap', '65'], config, '--overlap'],
  [['--dtype', 'f16'], unsupported, '--dtype f16'],
  [['--dtype', 'fp8', '--hidden', '24'], config, '--hidden'],
  [['--routing', 'random'], config, 'random'],
  [['--routing', 'hot:8'], config, 'hot:8'],
  [['--routing', 'hot:-1'], config, 'hot:-1'],
  [['--routing', 'hot:6', '--experts', '5', '--topk', '1', '--ranks', '8'], config, 'rank 6 owns none'],
  [['--routing', 'empty:0', '--ranks', '1'], config, 'rank 0 owns all experts'],
  [['--model', 'gpt'], config, '--model'],
  [['--model', 'missing.safetensors'], config, 'missing.safetensors'],
  [['--hidden', '0'], config, '--hidden'],
  [['--hidden', '60'], config, '--hidden'],
  [['--intermediate', '0'], config, '--intermediate'],
  [['--experts', '0'], config, '--experts'],
  [['--topk', '0'], config, '--topk'],
  [['--topk', '17'], config, '--topk'],
  [['--topk', '33', '--experts', '64'], config, '--topk'],
  [['--tokens', '-1'], config, '--tokens'],
  [['--tokens', '1,2'], config, '--tokens'],
  [['--tokens', '1,,2,3,4,5,6,7'], config, '--tokens'],
  [['--seed=-1'], config, '--seed'],
  [['--iters', '0'], config, '--iters'],
  [['--timeout-ms', '0'], config, '--timeout-ms'],
  [['--trace', '/nowhere/trace.json'], config, '--trace'],
  [['--fast'], config, '--fast'],
  [['--ranks'], config, '--ranks'],
  [['extra'], config, 'extra'],
])('refuses %j', async (args, code, part) => {
  expectRefusal(await app.run([...small(), ...args]), code, part)
})

it('refuses GPUs that are not there', async () => {
  const end = await app.run([...small({ ranks: 2 }), '--device', 'cuda'], { environment: { CUDA_VISIBLE_DEVICES: '' } })
  expectRefusal(end, 'ERR_MOE_EP_NO_DEVICE', 'cuda')
})

it('refuses a cache folder that cannot be made', async () => {
  for (const folder of ['/dev/null/cache', '']) {
    expectRefusal(await app.run(small(), { environment: { MOE_EP_CACHE: folder } }), config, 'MOE_EP_CACHE')
  }
})

it('says so without --json on standard error alone', async () => {
  const { exitCode, stdout, stderr } = await app.run(['--ranks', '0'])
  expect([exitCode, stdout]).toEqual([1, ''])
  expect(stderr).toMatch(/^moe-layer: ERR_MOE_EP_CONFIG: --ranks: expected .*, received 0\n$/)
})

describe('make-weights', () => {
  it.each<[string[], string]>([
    [[], '--out'],
    [['--out', 'weights.bin'], '--out'],
    [['--out', '/nowhere/weights.safetensors'], '/nowhere/weights.safetensors'],
    [['--out', 'w.safetensors', '--dtype', 'f16'], '--dtype'],
    [['--out', 'w.safetensors', '--hidden', '0'], '--hidden'],
    [['--out', 'w.safetensors', '--seed', 'x'], '--seed'],
    [['--out', 'w.safetensors', '--ranks', '2'], '--ranks'],
  ])('refuses %j', async (args, part) => {
    const { exitCode, stdout, stderr } = await app.run(['make-weights', ...args])
    expect([exitCode, stdout]).toEqual([1, ''])
    expect(stderr).toContain('moe-layer: ERR_MOE_EP_CONFIG: ')
    expect(stderr).toContain(part)
  })
})

describe('a weights file', () => {
  const sizes = ['--hidden', '64', '--intermediate', '32', '--experts', '16', '--topk', '4']
  const runWith = (name: string, ...args: string[]): Promise<AppEnd> =>
    app.run(['--json', '--ranks', '4', '--tokens', '16', '--iters', '1', '--model', app.path(name), ...args])
  let whole = Buffer.alloc(0)
  beforeAll(async () => {
    await app.run(['make-weights', '--out', app.path('whole.safetensors'), ...sizes])
    whole = await readFile(app.path('whole.safetensors'))
  })

  it('of other sizes than those asked for', async () => {
    for (const size of ['hidden', 'intermediate', 'experts']) {
      expectRefusal(await runWith('whole.safetensors', `--${size}`, '8'), config, `--${size}`)
    }
    expectRefusal(await runWith('whole.safetensors', '--topk', '17'), config, '--topk')
  })

  it('that is truncated', async () => {
    await writeFile(app.path('short.safetensors'), whole)
    await truncate(app.path('short.safetensors'), whole.length - 1)
    expectRefusal(await runWith('short.safetensors'), 'ERR_MOE_EP_FILE_FORMAT', 'short.safetensors')
  })

  it('that is empty, or text', async () => {
    for (const content of ['', 'not a safetensors file at all']) {
      await writeFile(app.path('other.safetensors'), content)
      expectRefusal(await runWith('other.safetensors'), 'ERR_MOE_EP_FILE_FORMAT', 'other.safetensors')
    }
  })

  it('that lacks a tensor which only one rank reads: that rank and the tensor are named', async () => {
    const last = 'experts.15.down_proj'
    const place = whole.indexOf(last)
    const lacking = Buffer.from(whole)
    lacking.write(last.toUpperCase(), place, 'latin1')
    await writeFile(app.path('lacking.safetensors'), lacking)
    for (const flags of [[], ['--workers']]) {
      const end = await runWith('lacking.safetensors', ...flags)
      expectRefusal(end, 'ERR_MOE_EP_FILE_FORMAT', last)
      expect(end.stderr).toContain('rank 3')
    }
  })
})
