import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { OperationTrace } from '@moe-ep/core'
import type { Span } from '../results/rank-result.js'

/** Stages of the layer by the operations that they consist of, in the order of the flow. */
const stageOfOperation: Readonly<Record<string, string>> = {
  'quant.quantizePerTokenGroup': 'quantize',
  'intranode.notify': 'exchange',
  'intranode.send': 'dispatch',
  'deepgemm-permute.permute': 'permute',
  'experts.groupedGemm': 'experts',
  'deepgemm-permute.unpermuteAndReduce': 'unpermute',
  'intranode.combine': 'combine',
  'low-latency.dispatch': 'dispatch',
  'low-latency.dispatchSend': 'dispatch',
  'low-latency.dispatchReceive': 'receive',
  'experts.batchedGemm': 'experts',
  'low-latency.combine': 'combine',
  'low-latency.combineSend': 'combine',
  'low-latency.combineReceive': 'reduce',
}

/** Collects the traces that the packages publish, one pass at a time. */
export class StageRecorder {
  readonly #traces: OperationTrace[] = []
  /** Of what graphs recorded: each launch moves their events. */
  readonly #kept: OperationTrace[] = []
  readonly #listen = (message: unknown): void => void this.#traces.push(message as OperationTrace)

  start(): void {
    subscribe('moe-ep:operation', this.#listen)
  }

  /** Records a graph: its operations belong to every pass from now on. */
  keep<Result>(record: () => Result): Result {
    const before = this.#traces.length
    const result = record()
    this.#kept.push(...this.#traces.splice(before))
    return result
  }

  /** The spans since the last call. The streams must have been awaited. */
  takePass(): Span[] {
    return [...this.#kept, ...this.#traces.splice(0)].flatMap((trace) => {
      const stage = stageOfOperation[trace.name]
      if (stage === undefined) return []
      return { stage, beginUs: trace.begin.completedAtUs, endUs: trace.end.completedAtUs, bytes: trace.bytes() ?? 0 }
    })
  }

  stop(): void {
    unsubscribe('moe-ep:operation', this.#listen)
  }
}

/** Microseconds on the clock that events use. */
export function nowUs(): number {
  return Number(process.hrtime.bigint()) / 1000
}
