import { createHash } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import { helpText } from '../../src/command/help.js'
import { layerFlags, layerOptionsFrom } from '../../src/command/layer-options.js'
import { prepareReportFile, writeReport } from '../../src/report/report-file.js'
import { renderReport } from '../../src/report/render-report.js'
import { useTemporaryFolder } from '../temporary-folder.js'
import { reportFixture } from './fixture.js'

const inFolder = useTemporaryFolder()

function embeddedJson(html: string): unknown {
  return JSON.parse(/<script type="application\/json" id="report-data">(.*?)<\/script>/s.exec(html)![1]!)
}

describe('the page', () => {
  it('asks nothing of a network and lets nothing in', () => {
    const html = renderReport(reportFixture())
    expect(html).not.toMatch(/\s(?:src|href|style|on\w+)=|@import|url\(/)
    expect(html.replaceAll('http://www.w3.org/2000/svg', '')).not.toMatch(/https?:/)
    expect(html).toContain('content="default-src &#39;none&#39;;')
  })

  it('allows exactly its own style and script', () => {
    const html = renderReport(reportFixture())
    const allowed = [...html.matchAll(/&#39;sha256-([^&]+)&#39;/g)].map(([, hash]) => hash)
    const contents = [...html.matchAll(/<(?:style|script)>(.*?)<\/(?:style|script)>/gs)].map(([, content]) => content!)
    expect(allowed).toEqual(contents.map((content) => createHash('sha256').update(content).digest('base64')))
  })

  it('embeds its data for programs', () => {
    const data = reportFixture({ ranks: 3, experts: 7, model: '</script><b>&' })
    const expertSelections = data.ranks.map((rank) => rank.expertSelections)
    expect(embeddedJson(renderReport(data))).toMatchObject({ result: data.result, expertSelections })
  })

  it('holds no markup from a model name', () => {
    const html = renderReport(reportFixture({ model: `<img src=x onerror="alert('&')">` }))
    expect(html).not.toContain('<img')
    expect(html).toContain('&#60;img src=x onerror=&#34;alert(&#39;&#38;&#39;)&#34;&#62;')
  })

  it('says whether the result is right', () => {
    expect(renderReport(reportFixture())).toContain('<p id="verdict" class="verdict ok">✓ ok</p>')
    const failed = reportFixture({ ok: false })
    const html = renderReport({
      ...failed,
      result: { ...failed.result, maxRelError: Number.MAX_VALUE, deterministic: false },
    })
    expect(html).toContain('<p id="verdict" class="verdict failed">✕ failed</p>')
    expect(html).toContain('<dt>largest error</dt><dd>not finite</dd>')
    expect(html).toContain('<dd>3, they differ</dd>')
  })

  it('has a table for every chart', () => {
    const data = reportFixture({ ranks: 3, experts: 5 })
    const html = renderReport(data)
    const rowsOf = (id: string): number =>
      new RegExp(`<table id="${id}".*?<tbody>(.*?)</tbody>`, 's').exec(html)![1]!.split('<tr>').length - 1
    expect(['stage-table', 'timeline-times', 'traffic-table', 'expert-table'].map(rowsOf)).toEqual([8, 3, 4, 5])
  })

  it('shows numbers in cells while they fit', () => {
    const numbers = (ranks: number): number =>
      renderReport(reportFixture({ ranks, experts: 1 })).match(/class="label on-heat-/g)?.length ?? 0
    expect([1, 2, 16, 17].map(numbers)).toEqual([1, 4, 256, 0])
  })

  it('stays small enough to open at the largest size that it is drawn for', () => {
    const html = renderReport(reportFixture({ ranks: 64, experts: 512, passes: 100, tokens: 4096 }))
    expect(html.length).toBeLessThan(4e6)
  })
})

describe('the file', () => {
  it('is written with its folder', async () => {
    const path = await prepareReportFile(inFolder('new/folder/report.html'))
    expect(path).toBe(inFolder('new/folder/report.html'))
    const data = reportFixture()
    await writeReport(path, data)
    expect(await readFile(path, 'utf8')).toBe(renderReport(data))
    expect(await prepareReportFile(path)).toBe(path)
  })

  it('is refused before the run where it cannot be', async () => {
    await mkdir(inFolder('taken'))
    await writeFile(inFolder('file'), '')
    for (const path of [inFolder('taken'), inFolder('file/report.html')]) {
      await expect(prepareReportFile(path)).rejects.toMatchObject({
        code: 'ERR_MOE_EP_CONFIG',
        message: expect.stringContaining(path),
      })
    }
  })
})

it('--report names the file', () => {
  const defaults = Object.fromEntries(
    Object.entries(layerFlags).flatMap(([name, flag]) => ('default' in flag ? [[name, flag.default]] : [])),
  )
  expect(layerOptionsFrom(defaults).report).toBeUndefined()
  expect(layerOptionsFrom({ ...defaults, report: 'a/report.html' }).report).toBe('a/report.html')
  expect(helpText).toContain('--report FILE.html')
})
