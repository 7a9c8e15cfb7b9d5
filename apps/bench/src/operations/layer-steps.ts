import type { Stream, Tensor } from '@moe-ep/core'
import type { LowLatencyDispatchResult } from '@moe-ep/low-latency'
import type { Part } from '../measure/byte-rules.js'
import { type LowLatencyBench, slots } from './low-latency-bench.js'

/** How long a stream does something else between the phases of a call, which is what phases are for. */
const betweenPhasesUs = 20

/** What a layer leaves to look at. */
export interface Layer {
  readonly result: LowLatencyDispatchResult
  readonly out: Tensor
}

export interface LayerOptions {
  readonly bench: LowLatencyBench
  /** The stream that the layers run on. */
  readonly stream: Stream
  /** What is called in two phases. */
  readonly phasesOf: 'dispatch' | 'combine' | undefined
  /** What experts make of what they get. */
  readonly answers: (result: LowLatencyDispatchResult) => Tensor
  /** Where the sums of each slot go. */
  readonly outs: readonly Tensor[]
  /** Told of each layer. */
  readonly leave: (layer: Layer) => void
}

/** The steps of layers: dispatch, then combine, each of which may be two with something else between. */
export function layerSteps(options: LayerOptions): (round: number) => readonly (() => unknown)[] {
  const { bench, stream, phasesOf, answers, outs, leave } = options
  const inPhases = (call: 'dispatch' | 'combine', send: () => unknown, receive: () => unknown): (() => unknown)[] =>
    phasesOf === call ? [send, () => stream.delay(betweenPhasesUs), receive] : [send]
  return (round) => {
    const out = outs[round % slots]!
    let result: LowLatencyDispatchResult
    let combined: (() => unknown) | undefined
    const dispatch = (): unknown => (result = bench.dispatch(round, phasesOf === 'dispatch'))
    const combine = (): void => {
      combined = bench.combine(answers(result), result, out, phasesOf === 'combine')
      leave({ result, out })
    }
    return [...inPhases('dispatch', dispatch, () => result.hook!()), ...inPhases('combine', combine, () => combined!())]
  }
}

/** The number of a call's step, or of one of its phases, where no other call has phases. */
export function stepOf(call: 'dispatch' | 'combine', part: Part): number {
  return (call === 'dispatch' ? 0 : 1) + (part === 'receive' ? 2 : 0)
}
