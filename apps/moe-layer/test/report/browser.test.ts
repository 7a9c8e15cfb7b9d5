import { describe, expect, it } from 'vitest'
import { requires } from '../../../../tooling/vitest/requirements.js'
import { renderReport } from '../../src/report/render-report.js'
import { openPage, probeChromium } from './browser.js'
import { reportFixture } from './fixture.js'

/** Pairs of labels of one chart that lie on one another, and labels that stick out of the bar or cell below them. */
const findCollisions = `
  const boxOf = (node) => node.getBoundingClientRect()
  const visible = (node) => boxOf(node).width > 0
  const collisions = []
  let checked = 0
  for (const chart of document.querySelectorAll('svg')) {
    const texts = [...chart.querySelectorAll('text')].filter(visible)
    texts.forEach((one, index) => {
      const a = boxOf(one)
      checked++
      for (const other of texts.slice(index + 1)) {
        const b = boxOf(other)
        if (a.left < b.right && b.left < a.right && a.top < b.bottom - 3 && b.top < a.bottom - 3) {
          collisions.push([one.textContent, other.textContent])
        }
      }
      const under = one.previousElementSibling
      if (one.classList.contains('label') && (a.left < boxOf(under).left || a.right > boxOf(under).right)) {
        collisions.push([one.textContent, 'its own bar'])
      }
    })
  }
  return { collisions, checked, overflow: document.documentElement.scrollWidth > innerWidth }
`

function count(dom: string, pattern: RegExp): number {
  return dom.match(pattern)?.length ?? 0
}

describe.skipIf(!requires('chromium', probeChromium))('the report in a browser', () => {
  it('draws every bar, cell and column under its own policy, with nothing on the console', async () => {
    const { dom, messages } = await openPage(renderReport(reportFixture({ ranks: 5, experts: 13 })))
    expect(messages).toEqual([])
    expect(count(dom, /class="bar stage-/g)).toBe(5 * 7)
    expect(count(dom, /class="cell heat-/g)).toBe(5 * 5)
    expect(count(dom, /class="column/g)).toBe(13)
    // Only the script does these two.
    expect(dom).not.toContain('<form class="controls" hidden')
    expect(count(dom, /aria-label="[^"]+"/g)).toBe(3)
  })

  it('tells of a page that its policy stops, so that silence above means something', async () => {
    const { messages } = await openPage(renderReport(reportFixture()).replace("'use strict'", "'use strict';"))
    expect(messages.join('\n')).toContain('Content Security Policy')
  })

  it('shows a hostile model name as text', async () => {
    const model = '/a & b/</title><script>document.title = "taken"</script>/"\'.safetensors'
    const html = renderReport(reportFixture({ model, ok: false }))
    const inspect = 'return [document.title, document.querySelector("h1").textContent, document.scripts.length]'
    const { messages, found } = await openPage(html, { inspect })
    expect(messages).toEqual([])
    expect(found).toEqual([`${model}: 2 ranks, failed`, model, 3])
  })

  it('selects the pass that the address names', async () => {
    const html = renderReport(reportFixture({ passes: 4 }))
    const tipOf = (dom: string): string | undefined => /data-tip="(combine[^"]*)"/.exec(dom)?.[1]
    const [first, last] = await Promise.all([openPage(html, { hash: '#pass=1' }), openPage(html, { hash: '#pass=4' })])
    expect([...first.messages, ...last.messages]).toEqual([])
    expect(tipOf(first.dom)).toBeDefined()
    expect(tipOf(first.dom)).not.toBe(tipOf(last.dom))
  })

  it('draws a pass as the first drawing did, zooms, and shows and hides a tooltip', async () => {
    const inspect = `
      const drawing = document.getElementById('timeline-drawing')
      const table = document.getElementById('timeline-times')
      const pass = document.getElementById('timeline-pass')
      const zoom = document.getElementById('timeline-zoom')
      const choose = (select, value) => { select.value = value; select.dispatchEvent(new Event('change')) }
      const state = () => drawing.innerHTML + table.innerHTML
      const typical = pass.value
      const before = state()
      choose(pass, '2')
      const other = state()
      choose(pass, typical)
      const width = () => document.querySelector('.bar').getBoundingClientRect().width
      const narrow = width()
      choose(zoom, '4')
      const ratio = width() / narrow
      const tip = document.getElementById('tip')
      const move = (node) => {
        const { x, y } = node.getBoundingClientRect()
        node.dispatchEvent(new PointerEvent('pointermove', { bubbles: true, clientX: x, clientY: y }))
        return tip.hidden ? 'hidden' : tip.textContent
      }
      const tips = ['.bar', '.cell', '.column', '.edge', 'h1'].map((name) => move(document.querySelector(name)))
      return { same: state() === before, differs: other !== before, ratio, tips }
    `
    const { found, messages } = await openPage(renderReport(reportFixture()), { inspect })
    expect(messages).toEqual([])
    expect(found).toEqual({
      same: true,
      differs: true,
      ratio: expect.toSatisfy((ratio: number) => ratio > 2 && ratio <= 4.01),
      tips: [
        expect.stringMatching(/^gate, rank 0\n\d+\sµs, beginning at \d+\sµs$/),
        expect.stringMatching(/^rank 0 keeps\n\d+\skB, \d+ rows\nroute: self$/),
        expect.stringMatching(/^expert 0, rank 0\n\d+ selections\n\d\.\d\d × the mean$/),
        expect.stringMatching(/^rank 0 sends \d+\skB to others$/),
        'hidden',
      ],
    })
  })

  it.each([
    ['one rank, one expert', { ranks: 1, experts: 1 }],
    ['eight ranks', { ranks: 8, experts: 32 }],
    ['sixteen ranks, fewer experts', { ranks: 16, experts: 13 }],
    ['64 ranks, 512 experts', { ranks: 64, experts: 512, tokens: 4096 }],
    ['no tokens', { ranks: 3, experts: 5, tokens: 0 }],
  ])('lets no labels collide, wide or narrow: %s', async (_name, options) => {
    const html = renderReport(reportFixture(options))
    const pages = [openPage(html, { inspect: findCollisions }), openPage(html, { inspect: findCollisions, width: 500 })]
    for (const { found, messages } of await Promise.all(pages)) {
      expect(messages).toEqual([])
      expect(found).toEqual({
        collisions: [],
        checked: expect.toSatisfy((checked: number) => checked > 20),
        overflow: false,
      })
    }
  })

  it('follows the theme of the reader', async () => {
    const inspect = `return ['body', '.heat-7', '.stage-0'].map((name) => {
      const { backgroundColor, fill } = getComputedStyle(document.querySelector(name))
      return name === 'body' ? backgroundColor : fill
    })`
    const html = renderReport(reportFixture())
    const [light, dark] = await Promise.all([openPage(html, { inspect }), openPage(html, { inspect, dark: true })])
    expect(light.found).toEqual(['rgb(251, 251, 250)', 'rgb(14, 61, 115)', 'rgb(139, 147, 161)'])
    expect(dark.found).toEqual(['rgb(16, 20, 26)', 'rgb(179, 213, 243)', 'rgb(121, 129, 143)'])
  })
})
