import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { listDevices } from '@moe-ep/core'
import { describe, expect, it } from 'vitest'
import { requires } from '../../../tooling/vitest/requirements.js'
import { operationNames } from '../src/command/operation-names.js'
import type { BenchResult } from '../src/results/bench-result.js'

const main = fileURLToPath(new URL('../dist/main.js', import.meta.url))

function runBench(...args: string[]): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [main, ...args], { timeout: 50_000 }, (_error, stdout, stderr) => {
      resolve({ exitCode: child.exitCode ?? -1, stdout, stderr })
    })
  })
}

const tiny = ['--tokens', '24', '--hidden', '160', '--experts', '5', '--topk', '3', '--iters', '2', '--warmup', '1']

describe('the built app', () => {
  it.each(['1', '3'])('measures every operation with %s ranks and prints one object', async (ranks) => {
    const { exitCode, stdout } = await runBench(...tiny, '--ranks', ranks, '--threads', '1', '--json')
    const result = JSON.parse(stdout) as BenchResult
    expect(result).toMatchObject({ ok: true, device: 'cpu' })
    expect(exitCode).toBe(0)
    expect(result.machine.cores).toBeGreaterThan(0)
    expect(result.config).toMatchObject({ ranks: Number(ranks), tokens: 24, hidden: 160, iters: 2 })
    expect(result.results.map(({ name }) => name)).toEqual(operationNames)
    for (const line of result.results) {
      expect(line.ok).toBe(true)
      expect(line.medianUs).toBeGreaterThan(0)
      expect(line.p99Us).toBeGreaterThanOrEqual(line.medianUs)
      expect(line.rule).not.toBe('')
      expect(line.ratio === null).toBe(line.bytes === 0)
      if (line.ratio === null) continue
      expect(line.ratio).toBeCloseTo(line.ceilingUs! / line.medianUs, 9)
      expect(line.gbPerSec).toBeCloseTo(line.bytes / line.medianUs / 1000, 9)
    }
    const dispatch = result.results.find(({ name }) => name === 'intranode-ht.dispatch-bf16')!
    expect(dispatch.wireBytes! > 0).toBe(ranks !== '1')
    expect(dispatch.logicalBytes).toBeGreaterThan(dispatch.wireBytes!)
  })

  it('prints a table without --json', async () => {
    const { exitCode, stdout } = await runBench(...tiny, '--ops', 'transport.put', '--ranks', '1')
    expect(stdout).toContain('transport.put')
    expect(stdout).toContain('all results are correct')
    expect(exitCode).toBe(0)
  })

  it('says what is wrong with a flag, as an object with --json', async () => {
    const { exitCode, stdout, stderr } = await runBench('--ranks', '0', '--json')
    expect(JSON.parse(stdout)).toMatchObject({ ok: false, error: { code: 'ERR_MOE_EP_CONFIG' } })
    expect(stderr).toContain('--ranks')
    expect(exitCode).toBe(1)
    const unknown = await runBench('--rank', '2')
    expect(unknown.stderr).toContain('ERR_MOE_EP_CONFIG')
    expect(unknown.exitCode).toBe(1)
  })
})

const hasGpu = requires('cuda', () => {
  const found = listDevices().find(({ name }) => name.startsWith('cuda'))
  return found?.available === true ? true : (found?.reason ?? 'no GPU')
})

describe.skipIf(!hasGpu)('the built app on a GPU', () => {
  it.each(['graph', 'plan', 'eager'])('measures what one rank does, launched as %s', async (launch) => {
    const flags = ['--device', 'cuda', '--launch', launch, '--ranks', '1', '--world', '3', '--json']
    const { exitCode, stdout } = await runBench(...tiny, ...flags)
    const result = JSON.parse(stdout) as BenchResult
    expect(result).toMatchObject({ ok: true, device: 'cuda', launch, world: 3, gpu: expect.any(String) })
    expect(exitCode).toBe(0)
    for (const line of result.results) expect(line.medianUs).toBeGreaterThan(0)
  })

  it('measures what ranks do together that share it', async () => {
    const ops = 'dispatch-fp8,dispatchWorstCase-bf16,combine-staged,dispatchGrouped-fp8,combineGrouped-staged,transport'
    const flags = ['--device', 'cuda', '--ranks', '2', '--share-gpus', '--sms', '4', '--ops', ops, '--json']
    const { exitCode, stdout } = await runBench(...tiny, ...flags)
    const result = JSON.parse(stdout) as BenchResult
    expect(result).toMatchObject({ ok: true, device: 'cuda', config: { ranks: 2, sms: 4 } })
    expect(exitCode).toBe(0)
    expect(result.results).toHaveLength(7)
    for (const line of result.results) {
      expect(line.medianUs).toBeGreaterThan(0)
      expect(line.ceiling === null).toBe(line.bytes === 0)
    }
  })
})
