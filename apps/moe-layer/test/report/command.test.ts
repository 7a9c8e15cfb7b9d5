import { mkdir, readFile } from 'node:fs/promises'
import { expect, it } from 'vitest'
import { jsonOf, type Refusal, small, useApp } from '../e2e/app.js'
import type { LayerResult } from '../../src/results/layer-result.js'

const app = useApp()

it('--report writes the page beside the one object on standard output, and says where', async () => {
  const path = app.path('reports/report.html')
  const end = await app.run([...small({ ranks: 3, tokens: '5,0,9', topk: 4, experts: 7 }), '--report', path])
  const result = jsonOf(end)
  expect([end.exitCode, result.ok]).toEqual([0, true])
  expect(end.stderr).toBe(`report: ${path}\n`)
  const html = await readFile(path, 'utf8')
  const json = /<script type="application\/json" id="report-data">(.*?)<\/script>/s.exec(html)![1]!
  const embedded = JSON.parse(json) as { result: LayerResult; expertSelections: number[][] }
  expect(embedded.result).toEqual(result)
  // Every token of a rank chose four experts.
  const totals = embedded.expertSelections.map((counts) => counts.reduce((sum, count) => sum + count, 0))
  expect(totals).toEqual([5 * 4, 0, 9 * 4])
  expect(embedded.expertSelections.map((counts) => counts.length)).toEqual([7, 7, 7])
})

it('--report is refused before anything starts where the file cannot be', async () => {
  const path = app.path('folder')
  await mkdir(path)
  const end = await app.run([...small({ ranks: 2 }), '--report', path])
  expect(end.exitCode).toBe(1)
  expect(jsonOf<Refusal>(end)).toMatchObject({ ok: false, error: { code: 'ERR_MOE_EP_CONFIG' } })
  expect(jsonOf<Refusal>(end).error.message).toContain(`--report: cannot write ${path}`)
})
