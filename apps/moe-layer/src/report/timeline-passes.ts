import { percentile } from '../results/stage-summary.js'
import type { RankResult, Span } from '../results/rank-result.js'

/** One pass as all ranks saw it, on their common clock. */
export interface TimelinePass {
  readonly index: number
  /** What is special about it. */
  readonly note: string
  /** Begin of the first span of any rank, microseconds. */
  readonly originUs: number
  readonly durationUs: number
  /** Spans of each rank. */
  readonly spans: readonly (readonly Span[])[]
}

export interface TimelineChoice {
  readonly passes: readonly TimelinePass[]
  /** Place in `passes` of the one to show first: the one of median duration. */
  readonly typical: number
  /** Passes that were measured, whether or not they are in `passes`. */
  readonly measured: number
}

/** Spans that a report holds at most, so that a browser stays quick with any number of passes and ranks. */
const mostSpans = 12_000

/**
 * The passes that the report offers: all, or where that is too much the fastest, the typical, the slowest and as many
 * others as fit, evenly spread.
 */
export function chooseTimelinePasses(ranks: readonly RankResult[], most = mostSpans): TimelineChoice {
  const measured = Math.min(...ranks.map(({ passes }) => passes.length))
  const all = Array.from({ length: measured }, (_, index) => passOf(ranks, index))
  const durations = all.map(({ durationUs }) => durationUs)
  const special = {
    typical: durations.indexOf(percentile(durations, 50)),
    fastest: durations.indexOf(Math.min(...durations)),
    slowest: durations.indexOf(Math.max(...durations)),
  }
  const spansOfPass = Math.max(1, ...all.map(({ spans }) => spans.flat().length))
  const room = Math.max(3, Math.floor(most / spansOfPass))
  const kept = new Set(Object.values(special))
  const step = Math.max(1, Math.ceil(measured / Math.max(1, room - kept.size)))
  const passes = all
    .filter(({ index }) => kept.has(index) || measured <= room || index % step === 0)
    .map((pass) => ({ ...pass, note: noteOf(pass.index, special) }))
  return { passes, typical: passes.findIndex(({ index }) => index === special.typical), measured }
}

function passOf(ranks: readonly RankResult[], index: number): TimelinePass {
  const spans = ranks.map(({ passes }) => passes[index]!)
  let originUs = Infinity
  let endUs = -Infinity
  for (const span of spans.flat()) {
    originUs = Math.min(originUs, span.beginUs)
    endUs = Math.max(endUs, span.endUs)
  }
  if (originUs === Infinity) return { index, note: '', originUs: 0, durationUs: 0, spans }
  return { index, note: '', originUs, durationUs: endUs - originUs, spans }
}

function noteOf(index: number, special: Readonly<Record<string, number>>): string {
  const names = Object.entries(special).filter(([, place]) => place === index)
  return names.map(([name]) => (name === 'typical' ? 'median' : name)).join(', ')
}
