import type { RankResult } from './rank-result.js'

/** All spans in the JSON form that chrome://tracing and Perfetto open: one process line for each rank. */
export function chromeTrace(results: readonly RankResult[]): string {
  const traceEvents = results.flatMap(({ rank, passes }) => [
    { name: 'process_name', ph: 'M', pid: rank, tid: 0, args: { name: `rank ${rank}` } },
    ...passes.flatMap((spans, pass) =>
      spans.map(({ stage, beginUs, endUs, bytes }) => ({
        ...{ name: stage, ph: 'X', pid: rank, tid: stage === 'layer' ? 0 : 1, ts: beginUs, dur: endUs - beginUs },
        args: { pass, bytes },
      })),
    ),
  ])
  return JSON.stringify({ displayTimeUnit: 'ms', traceEvents })
}
