/**
 * What the page does once it is open: tooltips, another pass, another zoom. A string, since it runs in the reader's
 * browser and the page must stay one file; every length and text comes from `layOutTimeline`. `#pass=3` in the address
 * selects a pass.
 */
export const pageScript = `
(() => {
  'use strict'
  const byId = (id) => document.getElementById(id)
  const { timeline } = JSON.parse(byId('report-data').textContent)
  const drawing = byId('timeline-drawing')
  const passes = byId('timeline-pass')
  const zoom = byId('timeline-zoom')
  const percent = (part) => Number((part * 100).toFixed(3)) + '%'

  function shape(name, attributes, text) {
    const node = document.createElementNS('http://www.w3.org/2000/svg', name)
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value)
    if (text !== undefined) node.textContent = text
    return node
  }

  function drawPass(index) {
    const { stages, rowHeight, barHeight, axisHeight, passes } = timeline
    const pass = passes[index]
    const top = (rank) => axisHeight + rank * rowHeight + (rowHeight - barHeight) / 2
    const nodes = pass.ticks.map(({ at, text, from }) => {
      const group = shape('g', { class: 'tick from-' + from })
      const anchor = at < 0.02 ? 'start' : at > 0.96 ? 'end' : 'middle'
      group.append(
        shape('line', { x1: percent(at), x2: percent(at), y1: axisHeight - 6, y2: '100%' }),
        shape('text', { x: percent(at), y: 12, 'text-anchor': anchor }, text),
      )
      return group
    })
    pass.tracks.forEach(([begin, width], rank) => {
      const box = { x: percent(begin), y: top(rank), width: percent(width), height: barHeight }
      nodes.push(shape('rect', { class: 'track', ...box }))
    })
    for (const { rank, stage, begin, width, tip, labelFrom } of pass.bars) {
      const { name, ink } = stages[stage]
      const box = { x: percent(begin), y: top(rank), width: percent(width), height: barHeight }
      nodes.push(shape('rect', { class: 'bar stage-' + ink, ...box, 'data-tip': tip }))
      if (labelFrom === 0 || barHeight < 14) continue
      const middle = { x: percent(begin + width / 2), y: top(rank) + barHeight / 2 }
      nodes.push(shape('text', { class: 'label on-stage-' + ink + ' from-' + labelFrom, ...middle }, name))
    }
    drawing.replaceChildren(...nodes)
    const rows = byId('timeline-times').tBodies[0].rows
    pass.times.forEach((times, rank) =>
      times.forEach((time, stage) => {
        rows[rank].cells[stage + 1].textContent = time
      }),
    )
  }

  function followAddress() {
    const found = /^#pass=(\\d+)$/.exec(location.hash)
    const index = found === null ? -1 : timeline.passes.findIndex(({ number }) => number === Number(found[1]))
    if (index < 0) return
    passes.value = String(index)
    drawPass(index)
  }

  passes.addEventListener('change', () => drawPass(Number(passes.value)))
  zoom.addEventListener('change', () => byId('timeline-plot').setAttribute('class', 'plot zoom-' + zoom.value))
  passes.form.addEventListener('submit', (event) => event.preventDefault())
  passes.form.hidden = false
  addEventListener('hashchange', followAddress)
  followAddress()

  // A title inside an SVG shows as the browser's own tooltip, on top of ours: the name moves to the label.
  for (const title of document.querySelectorAll('svg > title')) {
    title.parentNode.setAttribute('aria-label', title.textContent)
    title.parentNode.setAttribute('aria-describedby', title.nextSibling.id)
    title.parentNode.removeAttribute('aria-labelledby')
    title.remove()
  }

  const tip = byId('tip')
  const hide = () => { tip.hidden = true }
  addEventListener('pointermove', (event) => {
    const target = event.target instanceof Element ? event.target.closest('[data-tip]') : null
    if (target === null) return hide()
    tip.textContent = target.getAttribute('data-tip')
    tip.hidden = false
    const { width, height } = tip.getBoundingClientRect()
    const left = Math.min(event.clientX + 14, innerWidth - width - 8)
    const below = event.clientY + 16
    tip.style.left = Math.max(8, left) + 'px'
    tip.style.top = (below + height > innerHeight - 8 ? Math.max(8, event.clientY - height - 12) : below) + 'px'
  })
  addEventListener('pointerdown', (event) => dispatchEvent(new PointerEvent('pointermove', event)))
  document.addEventListener('pointerleave', hide)
  addEventListener('scroll', hide, { passive: true, capture: true })
})()
`
