import { heatLevel, heatLevels } from './colours.js'
import { element, type Markup } from './markup.js'
import { byteUnit, formatBytes, formatCount, formatNumber, type Unit } from './number-format.js'
import { chart, dataTable, legend, section } from './page-parts.js'
import type { ReportData } from './report-data.js'
import { labelStep } from './scale.js'

/** Bytes, rows and route from one rank to another. */
export interface Flow {
  readonly bytes: number
  readonly rows: number
  readonly route: string
}

interface Cells {
  readonly width: number
  readonly height: number
  readonly numbered: boolean
}

const left = 64
const top = 40
const marginBar = 72

/** Who sends how much to whom in one dispatch. */
export function trafficSection(data: ReportData): Markup {
  const flows = flowsOf(data)
  const most = Math.max(0, ...flows.map((row) => Math.max(...row.map(({ bytes }) => bytes))))
  const sent = flows.map((row, from) =>
    crossing(
      row.map(({ bytes }) => bytes),
      from,
    ),
  )
  const received = flows.map((_, to) =>
    crossing(
      flows.map((row) => row[to]!.bytes),
      to,
    ),
  )
  const total = sent.reduce((sum, bytes) => sum + bytes, 0)
  const kept = flows.reduce((sum, row, rank) => sum + row[rank]!.bytes, 0)
  const unit = cellUnit(most)
  return section(
    'traffic',
    'Traffic between ranks',
    flows.length === 1
      ? `Payload of one dispatch: ${formatBytes(kept)}, all of it from the one rank to itself.`
      : `Payload of one dispatch: ${formatBytes(total)} go to other ranks, ${formatBytes(kept)} stay on their own (outlined). ` +
          `The bars at the edges are what a rank sends to and receives from others.`,
    legend([
      { fill: 'heat-0', text: 'nothing' },
      ...Array.from({ length: heatLevels }, (_, index) => ({
        fill: `heat-${index + 1}`,
        text: `${index === 0 ? 'to ' : ''}${formatNumber((most * (index + 1)) / heatLevels / unit.size)} ${unit.name}`,
      })).filter(() => most > 0),
    ]),
    element('div', { class: 'scroll' }, heatMap(flows, { most, sent, received })),
    dataTable({
      id: 'traffic-table',
      summary: `Bytes from each rank to each rank as a table`,
      head: ['from \\ to', ...flows.map((_, rank) => rank), 'sent to others'],
      rows: [
        ...flows.map((row, from) => [from, ...row.map(({ bytes }) => formatCount(bytes)), formatCount(sent[from]!)]),
        ['received from others', ...received.map(formatCount), formatCount(total)],
      ],
    }),
  )
}

/** A unit in which small numbers beside the largest still show: up to four digits before the point. */
function cellUnit(most: number): Unit {
  return byteUnit(most / 10)
}

/** Size of a cell by the number of ranks. A number needs room; with many ranks the colour and the table must do. */
export function cellsOf(numRanks: number): Cells {
  if (numRanks <= 8) return { width: 58, height: 36, numbered: true }
  if (numRanks <= 16) return { width: 44, height: 28, numbered: true }
  const size = Math.max(4, Math.floor(832 / numRanks))
  return { width: size, height: size, numbered: false }
}

function heatMap(
  flows: readonly (readonly Flow[])[],
  { most, sent, received }: { most: number; sent: readonly number[]; received: readonly number[] },
): Markup {
  const cells = cellsOf(flows.length)
  const unit = cellUnit(most)
  const right = left + cells.width * flows.length
  const bottom = top + cells.height * flows.length
  const edge = flows.length === 1 ? 24 : marginBar
  const numbers = cells.numbered ? `, in ${unit.name}` : ''
  return chart(
    {
      id: 'traffic-plot',
      title: 'Rank-to-rank traffic',
      description: `Heat map of the bytes from each of ${flows.length} ranks to each. The table below holds the same numbers.`,
      attributes: { width: right + edge + 12, height: bottom + edge + 8 },
    },
    element('text', { class: 'axis-name', x: left, y: 12 }, `to rank${numbers}`),
    element('text', { class: 'axis-name', x: left - 12, y: top - 8, 'text-anchor': 'end' }, 'from'),
    axisLabels(flows.length, cells),
    flows.flatMap((row, from) =>
      row.flatMap((flow, to) => {
        const x = left + to * cells.width
        const y = top + from * cells.height
        const level = heatLevel(flow.bytes, most)
        const place = { x: x + 0.5, y: y + 0.5, width: cells.width - 1, height: cells.height - 1 }
        const cell = element('rect', { class: `cell heat-${level}`, ...place, 'data-tip': flowTip(flow, from, to) })
        if (!cells.numbered) return [cell]
        const middle = { x: x + cells.width / 2, y: y + cells.height / 2 }
        return [
          cell,
          element('text', { class: `label on-heat-${level}`, ...middle }, formatNumber(flow.bytes / unit.size)),
        ]
      }),
    ),
    flows.map((_, rank) => {
      const outline = (inset: number, name: string): Markup =>
        element('rect', {
          ...{ class: name, x: left + rank * cells.width + inset, y: top + rank * cells.height + inset },
          ...{ width: cells.width - 2 * inset, height: cells.height - 2 * inset },
        })
      // Two lines, so that one of them stands out from the cell in either theme.
      return cells.width < 8 ? [outline(0.5, 'own')] : [outline(0.5, 'own'), outline(2, 'own inner')]
    }),
    flows.length === 1 ? [] : edgeBars({ sent, received, cells, right, bottom }),
  )
}

function axisLabels(numRanks: number, { width, height }: Cells): Markup[] {
  const across = labelStep(numRanks, Math.floor((numRanks * width) / 24))
  const down = labelStep(numRanks, Math.floor((numRanks * height) / 14))
  const middleOf = (start: number, size: number, rank: number): number => start + (rank + 0.5) * size
  return Array.from({ length: numRanks }, (_, rank) => [
    ...(rank % across === 0
      ? [element('text', { class: 'axis', x: middleOf(left, width, rank), y: top - 8, 'text-anchor': 'middle' }, rank)]
      : []),
    ...(rank % down === 0
      ? [
          element(
            'text',
            { class: 'axis', x: left - 12, y: middleOf(top, height, rank) + 4, 'text-anchor': 'end' },
            rank,
          ),
        ]
      : []),
  ]).flat()
}

interface EdgeBars {
  readonly sent: readonly number[]
  readonly received: readonly number[]
  readonly cells: Cells
  readonly right: number
  readonly bottom: number
}

/** Totals of rows at the right and of columns at the bottom, on one scale. */
function edgeBars({ sent, received, cells, right, bottom }: EdgeBars): Markup[] {
  const most = Math.max(1, ...sent, ...received)
  const length = (bytes: number): number => Number(((bytes / most) * (marginBar - 16)).toFixed(1))
  return [
    element('text', { class: 'axis-name', x: right + 8, y: top - 8 }, 'sent'),
    element('text', { class: 'axis-name', x: left - 12, y: bottom + 18, 'text-anchor': 'end' }, 'received'),
    ...sent.map((bytes, rank) =>
      element('rect', {
        ...{ class: 'edge', x: right + 8, y: top + rank * cells.height + 1 },
        ...{
          width: length(bytes),
          height: cells.height - 2,
          'data-tip': `rank ${rank} sends ${formatBytes(bytes)} to others`,
        },
      }),
    ),
    ...received.map((bytes, rank) =>
      element('rect', {
        ...{ class: 'edge', x: left + rank * cells.width + 1, y: bottom + 8 },
        ...{
          width: cells.width - 2,
          height: length(bytes),
          'data-tip': `rank ${rank} receives ${formatBytes(bytes)} from others`,
        },
      }),
    ),
  ]
}

function flowTip({ bytes, rows, route }: Flow, from: number, to: number): string {
  const way = from === to ? `rank ${from} keeps` : `rank ${from} to rank ${to}`
  return `${way}\n${formatBytes(bytes)}, ${formatCount(rows)} ${rows === 1 ? 'row' : 'rows'}\nroute: ${route}`
}

/** The flows as a matrix, sender by receiver. */
function flowsOf({ result, ranks }: ReportData): Flow[][] {
  const flows = ranks.map(() => ranks.map((): Flow => ({ bytes: 0, rows: 0, route: 'none' })))
  for (const { from, to, route, bytes } of result.routes) {
    flows[from]![to] = { bytes, rows: ranks[from]!.sentRows[to] ?? 0, route }
  }
  return flows
}

function crossing(bytes: readonly number[], own: number): number {
  return bytes.reduce((sum, value, rank) => (rank === own ? sum : sum + value), 0)
}
