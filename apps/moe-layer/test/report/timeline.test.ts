import { describe, expect, it } from 'vitest'
import type { RankResult, Span } from '../../src/results/rank-result.js'
import { layOutTimeline, plotWidth } from '../../src/report/timeline-layout.js'
import { chooseTimelinePasses, type TimelinePass } from '../../src/report/timeline-passes.js'
import { reportFixture } from './fixture.js'

const stages = ['gate', 'experts']

function passOf(...spans: (readonly Span[])[]): TimelinePass {
  return { index: 2, note: 'median', originUs: 1000, durationUs: 1000, spans }
}

function span(stage: string, beginUs: number, endUs: number, bytes = 0): Span {
  return { stage, beginUs, endUs, bytes }
}

describe('the passes of a timeline', () => {
  /** Ranks whose passes have these durations; rank 1 begins 5 later. */
  function ranksWith(durations: readonly number[]): RankResult[] {
    const [base] = reportFixture({ ranks: 1 }).ranks
    return [0, 5].map((late, rank) => ({
      ...base!,
      rank,
      passes: durations.map((duration, pass) => [span('layer', pass * 1e6 + late, pass * 1e6 + duration)]),
    }))
  }

  it('are all kept where they are few, with the median shown first', () => {
    const { passes, typical, measured } = chooseTimelinePasses(ranksWith([300, 100, 200]))
    expect(passes.map(({ index, durationUs, note }) => [index, durationUs, note])).toEqual([
      [0, 300, 'slowest'],
      [1, 100, 'fastest'],
      [2, 200, 'median'],
    ])
    expect([typical, measured]).toEqual([2, 3])
  })

  it('are measured from the first begin of any rank to the last end', () => {
    const [base] = reportFixture({ ranks: 1 }).ranks
    const ranks = [
      { ...base!, passes: [[span('gate', 110, 120), span('combine', 150, 160)]] },
      { ...base!, passes: [[span('gate', 100, 170)]] },
    ]
    expect(chooseTimelinePasses(ranks).passes[0]).toMatchObject({ originUs: 100, durationUs: 70 })
  })

  it('are thinned out where they are many, but never lose the special ones', () => {
    const durations = Array.from({ length: 1000 }, (_, pass) => 500 + ((pass * 337) % 1000))
    const { passes, typical, measured } = chooseTimelinePasses(ranksWith(durations), 60)
    expect(passes.length).toBeGreaterThan(20)
    expect(passes.length).toBeLessThanOrEqual(30)
    expect(measured).toBe(1000)
    expect(passes[typical]!.note).toBe('median')
    expect(passes.flatMap(({ note }) => (note === '' ? [] : [note])).sort()).toEqual(['fastest', 'median', 'slowest'])
  })

  it('of one pass are all three at once', () => {
    const { passes, typical } = chooseTimelinePasses(ranksWith([100]))
    expect([passes[0]!.note, typical]).toEqual(['median, fastest, slowest', 0])
  })
})

describe('the layout of a pass', () => {
  it('puts every bar on its part of the clock', () => {
    const layout = layOutTimeline(
      passOf(
        [span('gate', 1000, 1250), span('experts', 1500, 2000, 5000), span('layer', 1000, 2000)],
        [span('gate', 1100, 1200), span('layer', 1050, 1900)],
      ),
      stages,
    )
    expect(layout.bars.map(({ rank, stage, begin, width }) => [rank, stage, begin, width])).toEqual([
      [0, 0, 0, 0.25],
      [0, 1, 0.5, 0.5],
      [1, 0, 0.1, 0.1],
    ])
    expect(layout.tracks).toEqual([
      [0, 1],
      [0.05, 0.85],
    ])
    expect(layout.title).toBe('3: 1\u00a0ms (median)')
    expect(layout.bars[1]!.tip).toBe(
      'experts, rank 0\n500\u00a0µs, beginning at 500\u00a0µs\n5\u00a0kB read and written',
    )
    expect(layout.times).toEqual([
      ['250\u00a0µs', '500\u00a0µs'],
      ['100\u00a0µs', '–'],
    ])
  })

  it('keeps a very short bar visible and inside', () => {
    const { bars } = layOutTimeline(passOf([span('gate', 1999.99, 2000)]), stages)
    expect(bars[0]!.width).toBeGreaterThan(0.001)
    expect(bars[0]!.begin + bars[0]!.width).toBeLessThanOrEqual(1)
  })

  it('labels a bar from the enlargement at which its name fits', () => {
    const widths = [0.5, 0.05, 0.01, 0.001]
    const { bars } = layOutTimeline(passOf(widths.map((width) => span('experts', 1000, 1000 + width * 1000))), stages)
    expect(bars.map(({ labelFrom }) => labelFrom)).toEqual([1, 4, 16, 0])
  })

  it('adds up the spans of a stage that ran twice', () => {
    const { bars, times } = layOutTimeline(passOf([span('gate', 1000, 1100), span('gate', 1300, 1400)]), stages)
    expect([bars.length, times[0]![0]]).toEqual([2, '200\u00a0µs'])
  })

  it('has ticks that stay apart at every enlargement', () => {
    for (const durationUs of [0.9, 7, 163, 999.9, 24_000, 163_500, 1.01e6, 3e8]) {
      const { ticks } = layOutTimeline({ ...passOf([]), durationUs }, stages)
      for (const zoom of [1, 4, 16]) {
        const shown = ticks.filter(({ from }) => from <= zoom).map(({ at }) => at * zoom * plotWidth)
        shown.sort((a, b) => a - b)
        const gaps = shown.slice(1).map((at, index) => at - shown[index]!)
        expect(shown[0]).toBe(0)
        expect(Math.min(...gaps)).toBeGreaterThan(60)
      }
    }
  })

  it('survives a pass without spans', () => {
    const { bars, ticks, tracks } = layOutTimeline({ ...passOf([], []), originUs: 0, durationUs: 0 }, stages)
    expect({ bars, ticks, tracks }).toEqual({
      bars: [],
      ticks: [],
      tracks: [
        [0, 0],
        [0, 0],
      ],
    })
  })
})
