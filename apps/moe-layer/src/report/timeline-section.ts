import { stageInkIndices } from './colours.js'
import { element, type Markup } from './markup.js'
import { chart, dataTable, legend, section } from './page-parts.js'
import type { ReportData } from './report-data.js'
import { labelStep, percent } from './scale.js'
import { layOutTimeline, type TimelineLayout, type TimelineTick, zooms } from './timeline-layout.js'
import { chooseTimelinePasses } from './timeline-passes.js'

/** What the page's script needs to draw another pass. */
export interface TimelineScriptData {
  readonly stages: readonly { readonly name: string; readonly ink: number }[]
  readonly rowHeight: number
  readonly barHeight: number
  readonly axisHeight: number
  readonly passes: readonly TimelineLayout[]
}

const axisHeight = 26

/** The timeline of one selectable pass: a row for each rank, a bar for each stage. */
export function timelineSection({ ranks, result }: ReportData): { markup: Markup; scriptData: TimelineScriptData } {
  const names = stagesInOrder(
    ranks.flatMap(({ passes }) => passes[0] ?? []).map(({ stage }) => stage),
    result.stages.map(({ name }) => name),
  )
  const inks = stageInkIndices(names)
  const { passes, typical, measured } = chooseTimelinePasses(ranks)
  const rowHeight = rowHeightOf(ranks.length)
  const scriptData: TimelineScriptData = {
    stages: names.map((name) => ({ name, ink: inks.get(name)! })),
    ...{ rowHeight, barHeight: rowHeight - (rowHeight >= 16 ? 6 : 2), axisHeight },
    passes: passes.map((pass) => layOutTimeline(pass, names)),
  }
  const layout = scriptData.passes[typical]!
  const height = axisHeight + rowHeight * ranks.length + 4
  const markup = section(
    'timeline',
    'Stage timeline',
    'When each rank worked on what, on the clock that the ranks share. The pale track behind the bars is the whole layer: ' +
      'where it shows, a rank waited or prepared the next stage.',
    controls(scriptData, typical, measured),
    legend(scriptData.stages.map(({ name, ink }) => ({ fill: `stage-${ink}`, text: name }))),
    element(
      'div',
      { class: 'framed' },
      element('svg', { class: 'gutter', width: 44, height, 'aria-hidden': 'true' }, gutter(ranks.length, rowHeight)),
      element(
        'div',
        { class: 'scroll' },
        chart(
          {
            id: 'timeline-plot',
            title: 'Stage timeline over ranks',
            description: `One row for each of ${ranks.length} ranks, one bar for each stage. The table below holds the same times.`,
            attributes: { class: 'plot zoom-1', width: '100%', height },
          },
          element('g', { id: 'timeline-drawing' }, timelineDrawing(scriptData, layout)),
        ),
      ),
    ),
    timesTable(names, layout),
  )
  return { markup, scriptData }
}

/** Ticks, tracks and bars of a pass. The page's script draws the same elements. */
export function timelineDrawing(data: TimelineScriptData, { ticks, tracks, bars }: TimelineLayout): Markup[] {
  const { rowHeight, barHeight } = data
  const top = (rank: number): number => axisHeight + rank * rowHeight + (rowHeight - barHeight) / 2
  return [
    ...ticks.map(tickMark),
    ...tracks.map(([begin, width], rank) =>
      element('rect', { class: 'track', x: percent(begin), y: top(rank), width: percent(width), height: barHeight }),
    ),
    ...bars.flatMap(({ rank, stage, begin, width, tip, labelFrom }) => {
      const { name, ink } = data.stages[stage]!
      const box = { x: percent(begin), y: top(rank), width: percent(width), height: barHeight }
      const bar = element('rect', { class: `bar stage-${ink}`, ...box, 'data-tip': tip })
      if (labelFrom === 0 || barHeight < 14) return [bar]
      const middle = { x: percent(begin + width / 2), y: top(rank) + barHeight / 2 }
      return [bar, element('text', { class: `label on-stage-${ink} from-${labelFrom}`, ...middle }, name)]
    }),
  ]
}

function tickMark({ at, text, from }: TimelineTick): Markup {
  // The first and the last label would hang over the edge.
  const anchor = at < 0.02 ? 'start' : at > 0.96 ? 'end' : 'middle'
  return element(
    'g',
    { class: `tick from-${from}` },
    element('line', { x1: percent(at), x2: percent(at), y1: axisHeight - 6, y2: '100%' }),
    element('text', { x: percent(at), y: 12, 'text-anchor': anchor }, text),
  )
}

function gutter(numRanks: number, rowHeight: number): Markup[] {
  const step = labelStep(numRanks, Math.floor((numRanks * rowHeight) / 14))
  const labelled = Array.from({ length: numRanks }, (_, rank) => rank).filter((rank) => rank % step === 0)
  return [
    element('text', { class: 'axis-name', x: 36, y: 12, 'text-anchor': 'end' }, 'rank'),
    ...labelled.map((rank) =>
      element(
        'text',
        { class: 'axis', x: 36, y: axisHeight + (rank + 0.5) * rowHeight + 4, 'text-anchor': 'end' },
        rank,
      ),
    ),
  ]
}

function controls({ passes }: TimelineScriptData, typical: number, measured: number): Markup {
  const count =
    passes.length < measured
      ? `${passes.length} of ${measured} passes`
      : `${measured} ${measured === 1 ? 'pass' : 'passes'}`
  return element(
    'form',
    { class: 'controls', hidden: true },
    element(
      'label',
      {},
      'Pass ',
      element(
        'select',
        { id: 'timeline-pass', autocomplete: 'off' },
        passes.map(({ title }, index) => element('option', { value: index, selected: index === typical }, title)),
      ),
    ),
    element('span', { class: 'count' }, `of ${count}`),
    element(
      'label',
      {},
      'Zoom ',
      element(
        'select',
        { id: 'timeline-zoom', autocomplete: 'off' },
        zooms.map((zoom) => element('option', { value: zoom, selected: zoom === 1 }, `${zoom}×`)),
      ),
    ),
  )
}

function timesTable(stages: readonly string[], { times }: TimelineLayout): Markup {
  return dataTable({
    id: 'timeline-times',
    summary: 'Times of this pass as a table',
    head: ['rank', ...stages],
    rows: times.map((row, rank) => [rank, ...row]),
  })
}

/** Order of the summary, then whatever else occurs; the whole layer is no stage of its own. */
function stagesInOrder(found: readonly string[], summary: readonly string[]): string[] {
  const present = new Set(found)
  return [...new Set([...summary.filter((name) => present.has(name)), ...found])].filter((name) => name !== 'layer')
}

function rowHeightOf(numRanks: number): number {
  if (numRanks <= 8) return 30
  if (numRanks <= 16) return 24
  return numRanks <= 32 ? 18 : 12
}
