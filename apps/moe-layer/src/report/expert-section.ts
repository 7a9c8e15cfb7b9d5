import { expertLoad, type ExpertLoad } from './expert-load.js'
import { element, type Markup } from './markup.js'
import { formatCount, formatNumber } from './number-format.js'
import { chart, dataTable, section } from './page-parts.js'
import type { ReportData } from './report-data.js'
import { labelStep, multiples, niceStep, percent } from './scale.js'

const top = 24
const plotHeight = 180
const bottom = top + plotHeight
const height = bottom + 48

/** How often each expert was chosen, beside its neighbours on the same rank. */
export function expertSection(data: ReportData): Markup {
  const load = expertLoad(data)
  const { selections, owners } = load
  const ranks = owners.filter(({ begin, end }) => end > begin)
  const step = Math.max(1, niceStep(selections[load.busiest]!, 4))
  const end = step * Math.max(1, Math.ceil(selections[load.busiest]! / step))
  return section(
    'experts',
    'Load of each expert',
    introduction(load),
    element(
      'div',
      { class: 'framed' },
      element('svg', { class: 'gutter', width: 64, height, 'aria-hidden': 'true' }, verticalAxis(step, end)),
      element(
        'div',
        { class: 'scroll' },
        chart(
          {
            id: 'expert-plot',
            title: 'Selections of each expert, grouped by owning rank',
            description: `${selections.length} experts on ${ranks.length} ranks. The table below holds the same numbers.`,
            attributes: { class: `plot ${widthClass(selections.length)}`, width: '100%', height },
          },
          ranks.map((owner, index) => band(owner, index, selections.length)),
          multiples(step, end).map((value) => {
            const y = heightOf(value, end)
            return element('line', { class: 'grid', x1: 0, x2: '100%', y1: y, y2: y })
          }),
          columns(load, end),
          meanLine(load, end),
          labels(load, end),
          rankLabels(ranks, selections.length),
        ),
      ),
    ),
    dataTable({
      id: 'expert-table',
      summary: 'Selections of each expert as a table',
      head: ['expert', 'rank', 'selections', 'of the mean'],
      rows: ranks.flatMap(({ rank, begin, end }) =>
        selections
          .slice(begin, end)
          .map((count, local) => [begin + local, rank, formatCount(count), ofMean(count, load)]),
      ),
    }),
  )
}

function introduction({ total, mean, busiest, selections, imbalance, rankImbalance, idle }: ExpertLoad): string {
  if (imbalance === undefined || rankImbalance === undefined) return 'No token chose an expert.'
  const sentences = [
    `${formatCount(total)} selections by the tokens of all ranks, ${formatNumber(mean)} an expert.`,
    `The busiest, expert ${busiest}, has ${formatCount(selections[busiest]!)}: max/mean ${imbalance.toFixed(2)} over experts,`,
    `${rankImbalance.toFixed(2)} over ranks.`,
  ]
  if (idle > 0) sentences.push(`${formatCount(idle)} ${idle === 1 ? 'expert has' : 'experts have'} none.`)
  return sentences.join(' ')
}

function columns({ selections, owners, busiest, ...load }: ExpertLoad, end: number): Markup[] {
  const isUneven = load.imbalance !== undefined && load.imbalance > 1
  const share = 1 / selections.length
  const gap = selections.length > 200 ? 0.1 : 0.2
  return owners.flatMap(({ rank, begin, end: last }) =>
    selections.slice(begin, last).map((count, local) => {
      const expert = begin + local
      const y = heightOf(count, end)
      return element('rect', {
        ...{ class: expert === busiest && isUneven ? 'column busiest' : 'column', y, height: round(bottom - y) },
        ...{ x: percent((expert + gap / 2) * share), width: percent((1 - gap) * share) },
        'data-tip': `expert ${expert}, rank ${rank}\n${formatCount(count)} selections\n${ofMean(count, load)} × the mean`,
      })
    }),
  )
}

/** The owner's strip behind its columns: every second one shaded. It answers where a column is too low to hit. */
function band(owner: ExpertLoad['owners'][number], index: number, numExperts: number): Markup {
  const { rank, begin, end, selections } = owner
  return element('rect', {
    ...{ class: index % 2 === 0 ? 'band shaded' : 'band', x: percent(begin / numExperts), y: top - 4 },
    ...{ width: percent((end - begin) / numExperts), height: height - top + 4 },
    'data-tip': `rank ${rank}: experts ${begin} to ${end - 1}\n${formatCount(selections)} selections`,
  })
}

function meanLine({ mean, imbalance }: ExpertLoad, end: number): Markup[] {
  if (imbalance === undefined) return []
  const y = heightOf(mean, end)
  // A pale line below the dashes keeps them apart from the columns.
  return ['mean ground', 'mean'].map((name) => element('line', { class: name, x1: 0, x2: '100%', y1: y, y2: y }))
}

/** The largest count over its column, and the experts' ids under as many columns as have room. */
function labels({ selections, busiest, imbalance }: ExpertLoad, end: number): Markup[] {
  const middle = (expert: number): number => (expert + 0.5) / selections.length
  const step = labelStep(selections.length, labelledColumns(selections.length))
  const ids = selections.flatMap((_, expert) =>
    expert % step === 0 ? [axisLabel(middle(expert), bottom + 20, expert)] : [],
  )
  if (imbalance === undefined) return ids
  const at = middle(busiest)
  const anchor = at < 0.05 ? 'start' : at > 0.95 ? 'end' : 'middle'
  const y = heightOf(selections[busiest]!, end) - 5
  const most = element(
    'text',
    { class: 'most', x: percent(at), y, 'text-anchor': anchor },
    formatCount(selections[busiest]!),
  )
  return [...ids, most]
}

function rankLabels(ranks: ExpertLoad['owners'], numExperts: number): Markup[] {
  const step = labelStep(ranks.length, labelledColumns(numExperts))
  return ranks
    .filter(({ rank }) => rank % step === 0)
    .map(({ rank, begin, end }) => axisLabel((begin + end) / 2 / numExperts, bottom + 38, rank))
}

/** Below a column, or beginning at the edge where a narrow first column would push half of the label out of sight. */
function axisLabel(at: number, y: number, text: number): Markup {
  const place = at < 0.01 ? { x: 1, 'text-anchor': 'start' } : { x: percent(at), 'text-anchor': 'middle' }
  return element('text', { class: 'axis', ...place, y }, text)
}

function verticalAxis(step: number, end: number): Markup[] {
  const right = { x: 56, 'text-anchor': 'end' }
  return [
    element('text', { class: 'axis-name', ...right, y: 12 }, 'selections'),
    ...multiples(step, end).map((value) =>
      element('text', { class: 'axis', ...right, y: heightOf(value, end) + 4 }, formatCount(value)),
    ),
    element('text', { class: 'axis-name', ...right, y: bottom + 20 }, 'expert'),
    element('text', { class: 'axis-name', ...right, y: bottom + 38 }, 'rank'),
  ]
}

/** Narrowest width at which columns stay apart; below it the plot scrolls. */
function widthClass(numExperts: number): string {
  if (numExperts <= 64) return 'least-280'
  return numExperts <= 160 ? 'least-480' : numExperts <= 320 ? 'least-800' : 'least-900'
}

/** Labels of three digits that fit beside one another in that width. */
function labelledColumns(numExperts: number): number {
  return Math.floor(Number(widthClass(numExperts).slice('least-'.length)) / 30)
}

function ofMean(count: number, { mean }: Pick<ExpertLoad, 'mean'>): string {
  return mean === 0 ? '–' : (count / mean).toFixed(2)
}

function heightOf(value: number, end: number): number {
  return round(bottom - (value / end) * plotHeight)
}

function round(pixels: number): number {
  return Number(pixels.toFixed(2))
}
