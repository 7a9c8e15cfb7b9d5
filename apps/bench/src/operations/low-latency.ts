import { Graph, type Tensor } from '@moe-ep/core'
import type { LowLatencyDispatchResult } from '@moe-ep/low-latency'
import {
  lowLatencyCombineBytes,
  lowLatencyDispatchBytes,
  lowLatencyRowBytes,
  type Part,
  rules,
} from '../measure/byte-rules.js'
import { copyCeilings } from '../measure/copy-ceilings.js'
import { inHostMemory } from '../measure/host-copies.js'
import { pushCeilings } from '../measure/push-ceilings.js'
import type { Scope } from '../measure/scope.js'
import { emptyStep, stepCase } from '../measure/step-case.js'
import type { TimedCase } from '../measure/timed-case.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { type Layer, layerSteps, stepOf } from './layer-steps.js'
import { LowLatencyBench, type LowLatencyKind, slots } from './low-latency-bench.js'
import { checkDispatched, expectedSum, sentRow } from './low-latency-checks.js'
import type { BenchContext, Operation } from './operation.js'

/** Layers that follow one another in a cuda stream and are timed together: what it takes to start one is as much as a layer itself. */
const calls = 8

/** What must at least be moved: on cuda a push of the rows that travel, on the cpu a copy of all bytes. */
function ceilingsOf(
  context: BenchContext,
  scope: Scope,
  bytes: number,
  pushed: { readonly rows: readonly (readonly number[])[]; readonly rowBytes: number },
): Promise<TimedCase[]> {
  return context.device.kind === 'cpu'
    ? copyCeilings(context, scope, bytes)
    : pushCeilings(context, scope, { ...pushed, sixteenths: 16 })
}

/** A dispatch, or a phase of it, with a combine behind it that is not timed. */
export function lowLatencyDispatchOf(format: LowLatencyKind['format'], part: Part = 'both'): Operation {
  return async (context, scope) => {
    const { options, group, routing, stopwatch } = context
    const { tokens, hidden } = options
    const { stream } = stopwatch
    const kind = kindOf(context, { format, weighted: true })
    const bench = await LowLatencyBench.create(context, scope, kind)
    const ones = format === 'bf16' ? undefined : bench.ones(scope)
    const outs = Array.from({ length: slots }, () => scope.zeros([tokens, hidden], 'bf16'))
    const rowBytes = lowLatencyRowBytes(format, hidden)
    let last!: Layer
    const { slots: selections } = routing.received(group.rank)
    const counted = lowLatencyDispatchBytes(bench.sent, { inputBytes: hidden * 2, rowBytes, selections }, part)
    const phasesOf = part === 'both' ? undefined : 'dispatch'
    const answers = (result: LowLatencyDispatchResult): Tensor => ones ?? result.packedRecvX
    return {
      ...{ ...counted, ...emptyStep(context), rule: rules.lowLatencyDispatch },
      ceilings: await ceilingsOf(context, scope, counted.bytes, { rows: bench.sentRows, rowBytes }),
      subject: stepCase(context, {
        ...{ name: 'dispatch', sets: slots, timed: stepOf('dispatch', part) },
        steps: layerSteps({ bench, stream, phasesOf, answers, outs, leave: (layer) => (last = layer) }),
      }),
      check: () => checkRows(context, scope, last.result, format),
    }
  }
}

/** Combine of what a dispatch left, as if experts changed nothing, or a phase of it; the dispatch is not timed. */
export function lowLatencyCombineOf(
  { weighted, useLogfmt = false }: { readonly weighted: boolean; readonly useLogfmt?: boolean },
  part: Part = 'both',
): Operation {
  return async (context, scope) => {
    const { options, group, routing, stopwatch } = context
    const { tokens, hidden } = options
    const { stream } = stopwatch
    const kind = kindOf(context, { format: 'bf16', weighted, useLogfmt })
    const sentBytes = lowLatencyRowBytes(useLogfmt ? 'logfmt10' : 'bf16', hidden)
    const bench = await LowLatencyBench.create(context, scope, kind)
    const outs = Array.from({ length: slots }, () => scope.zeros([tokens, hidden], 'bf16'))
    let last!: Layer
    const rows = kind.weighted ? routing.matrix : routing.selections
    const counted = lowLatencyCombineBytes(
      { ...bench.sent, toRank: rows[group.rank]! },
      { tokens, rowBytes: hidden * 2, sentBytes, selections: routing.received(group.rank).slots },
      part,
    )
    const phasesOf = part === 'both' ? undefined : 'combine'
    const answers = ({ packedRecvX }: LowLatencyDispatchResult): Tensor => packedRecvX
    const homeward = rows.map((_, i) => rows.map((row) => row[i]!))
    return {
      ...{ ...counted, ...emptyStep(context), rule: combineRuleOf(kind) },
      ceilings: await ceilingsOf(context, scope, counted.bytes, { rows: homeward, rowBytes: sentBytes }),
      subject: stepCase(context, {
        ...{ name: 'combine', sets: slots, timed: stepOf('combine', part) },
        steps: layerSteps({ bench, stream, phasesOf, answers, outs, leave: (layer) => (last = layer) }),
      }),
      check: () =>
        checkSums(context, scope, last.out, (token) =>
          expectedSum(context, token, sentRow(context, group.rank, token), kind),
        ),
    }
  }
}

/**
 * Dispatch in fp8 and combine in bf16 in one stream, experts' results being there already: called one by one, or as a graph of both that
 * is replayed.
 */
export function lowLatencyLayerOf({ graph }: { readonly graph: boolean }): Operation {
  return async (context, scope) => {
    const { options, group, device, routing, stopwatch } = context
    const { tokens, hidden } = options
    const kind = kindOf(context, { format: 'fp8', weighted: true })
    const bench = await LowLatencyBench.create(context, scope, kind)
    const answers = bench.ones(scope)
    const out = scope.zeros([tokens, hidden], 'bf16')
    const rows = kind.weighted ? routing.matrix : routing.selections
    const selections = routing.received(group.rank).slots
    const there = lowLatencyDispatchBytes(bench.sent, {
      ...{ inputBytes: hidden * 2, rowBytes: lowLatencyRowBytes(kind.format, hidden), selections },
    })
    const back = lowLatencyCombineBytes(
      { ...bench.sent, toRank: rows[group.rank]! },
      { tokens, rowBytes: hidden * 2, sentBytes: hidden * 2, selections },
    )
    const layers = device.kind === 'cuda' ? calls : 1
    const enqueue = (first: number): LowLatencyDispatchResult => {
      let result!: LowLatencyDispatchResult
      for (let layer = first; layer < first + layers; layer++) {
        result = bench.dispatch(layer)
        bench.combine(answers, result, out)
      }
      return result
    }
    enqueue(0)
    await stopwatch.stream.synchronize()
    const results: LowLatencyDispatchResult[] = []
    const capture = (slot: number): Graph =>
      scope.own(Graph.capture(stopwatch.stream, () => void (results[slot] = enqueue(slot))))
    const graphs = graph ? Array.from({ length: slots }, (_, slot) => capture(slot)) : []
    let last!: LowLatencyDispatchResult
    const bytes = there.bytes + back.bytes
    return {
      ...{ bytes, logicalBytes: there.logicalBytes + back.logicalBytes, wireBytes: there.wireBytes + back.wireBytes },
      rule: `dispatch: ${rules.lowLatencyDispatch}; combine: ${combineRuleOf(kind)}`,
      ceilings: await ceilingsOf(context, scope, bytes, {
        ...{ rows: bench.sentRows, rowBytes: lowLatencyRowBytes(kind.format, hidden) + hidden * 2 },
      }),
      subject: {
        ...{ name: 'layer', sets: slots },
        async time(iteration) {
          const slot = iteration % slots
          const { streamUs } = await stopwatch.time(() => {
            if (graph) graphs[slot]!.launch(stopwatch.stream)
            last = graph ? results[slot]! : enqueue(slot)
          })
          return streamUs / layers
        },
      },
      async check() {
        const ones = new Float32Array(hidden).fill(1)
        return (
          (await checkRows(context, scope, last, kind.format)) ??
          (await checkSums(context, scope, out, (token) => expectedSum(context, token, ones, kind)))
        )
      },
    }
  }
}

/** Where a row travels for each expert, weights go to combine. */
function kindOf({ options }: BenchContext, kind: LowLatencyKind): LowLatencyKind {
  return options.protocol === 'rank' ? kind : { ...kind, weighted: false }
}

function combineRuleOf({ weighted }: LowLatencyKind): string {
  return weighted ? rules.lowLatencyCombineWeighted : rules.lowLatencyCombine
}

async function checkRows(
  context: BenchContext,
  scope: Scope,
  { packedRecvX, packedRecvXScales, packedRecvCount, handle }: LowLatencyDispatchResult,
  format: LowLatencyKind['format'],
): Promise<string | undefined> {
  const tensors = { packedRecvX, packedRecvXScales, packedRecvCount, srcInfo: handle.srcInfo }
  return checkDispatched(context, await inHostMemory(context, scope, tensors), format)
}

async function checkSums(
  context: BenchContext,
  scope: Scope,
  combined: Tensor,
  expected: (token: number) => Uint16Array,
): Promise<string | undefined> {
  const out = await inHostMemory(context, scope, combined)
  const wrong = sampleRows(context.options.tokens).find(
    (token) => !sameNumbers(out.slice(token, token + 1).data as Uint16Array, expected(token)),
  )
  return wrong === undefined ? undefined : `token ${wrong} is not the sum of its rows`
}
