import { formatBytes, formatNumber, formatTime, timeUnit } from './number-format.js'
import { finerStep, multiples, niceStep } from './scale.js'
import type { TimelinePass } from './timeline-passes.js'

/** Enlargements that the reader can choose, and the width in pixels below which the plot scrolls instead of shrinking. */
export const zooms = [1, 4, 16] as const
export const plotWidth = 560

/** A stage of a rank. Lengths along the clock are parts of the pass, 0 to 1. */
export interface TimelineBar {
  readonly rank: number
  readonly stage: number
  readonly begin: number
  readonly width: number
  readonly tip: string
  /** Smallest enlargement at which the stage's name fits inside; 0 for none. */
  readonly labelFrom: number
}

export interface TimelineTick {
  readonly at: number
  readonly text: string
  /** Smallest enlargement at which the tick is shown. */
  readonly from: number
}

/** A pass with every length and text that its drawing needs, so that the first drawing and the page's later ones agree. */
export interface TimelineLayout {
  /** Number of the pass, from 1, as the address of the page may name it. */
  readonly number: number
  readonly title: string
  readonly bars: readonly TimelineBar[]
  /** The whole layer of each rank, behind its bars. */
  readonly tracks: readonly (readonly [begin: number, width: number])[]
  readonly ticks: readonly TimelineTick[]
  /** Time of each rank in each stage, for the table. */
  readonly times: readonly (readonly string[])[]
}

/** A thinner bar would not show. */
const leastWidth = 0.0015

export function layOutTimeline(pass: TimelinePass, stages: readonly string[]): TimelineLayout {
  const duration = Math.max(pass.durationUs, Number.MIN_VALUE)
  const place = (us: number): number => round((us - pass.originUs) / duration)
  const bars = pass.spans.flatMap((spans, rank) =>
    spans
      .filter(({ stage }) => stage !== 'layer')
      .map(({ stage, beginUs, endUs, bytes }): TimelineBar => {
        const width = Math.max(leastWidth, round((endUs - beginUs) / duration))
        const from = formatTime(beginUs - pass.originUs)
        const lines = [
          `${stage}, rank ${rank}`,
          `${formatTime(endUs - beginUs)}, beginning at ${from}`,
          ...(bytes > 0 ? [`${formatBytes(bytes)} read and written`] : []),
        ]
        const begin = Math.min(place(beginUs), 1 - width)
        return {
          rank,
          stage: stages.indexOf(stage),
          begin,
          width,
          tip: lines.join('\n'),
          labelFrom: labelZoom(stage, width),
        }
      }),
  )
  const tracks = pass.spans.map((spans): readonly [number, number] => {
    const layer = spans.find(({ stage }) => stage === 'layer')
    return layer === undefined ? [0, 0] : [place(layer.beginUs), round((layer.endUs - layer.beginUs) / duration)]
  })
  const times = pass.spans.map((spans) =>
    stages.map((name) => {
      const ofStage = spans.filter(({ stage }) => stage === name)
      return ofStage.length === 0
        ? '–'
        : formatTime(ofStage.reduce((sum, { beginUs, endUs }) => sum + endUs - beginUs, 0))
    }),
  )
  const note = pass.note === '' ? '' : ` (${pass.note})`
  const title = `${pass.index + 1}: ${formatTime(pass.durationUs)}${note}`
  return { number: pass.index + 1, title, bars, tracks, ticks: ticksOf(pass.durationUs), times }
}

/** Ticks for every enlargement; finer ones fall between coarser ones. */
function ticksOf(durationUs: number): TimelineTick[] {
  if (!(durationUs > 0)) return []
  const { name, size } = timeUnit(durationUs)
  const ticks = new Map<number, TimelineTick>()
  let step = niceStep(durationUs, 5)
  for (const from of zooms) {
    for (const us of multiples(step, durationUs)) {
      if (!ticks.has(us))
        ticks.set(us, { at: round(us / durationUs), text: `${formatNumber(us / size)}\u00a0${name}`, from })
    }
    step = finerStep(step)
  }
  return [...ticks.values()]
}

/** A letter takes some 7 pixels at the size that labels have; the narrowest plot decides. */
function labelZoom(stage: string, width: number): number {
  return zooms.find((zoom) => width * zoom * plotWidth >= stage.length * 7 + 10) ?? 0
}

function round(part: number): number {
  return Number(part.toFixed(6))
}
