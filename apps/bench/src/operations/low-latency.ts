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
import type { TimedCase } from '../measure/timed-case.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { LowLatencyBench, type LowLatencyKind, slots } from './low-latency-bench.js'
import { checkDispatched, expectedSum, sentRow } from './low-latency-checks.js'
import type { BenchContext, Operation } from './operation.js'

/**
 * Calls that follow one another in a stream and are timed together, on cuda: what it takes to start and to time one is as much as a
 * call itself.
 */
const calls = 8

/** What must at least be moved: on cuda a push of the rows that travel, on the cpu a copy of all bytes. */
function ceilingsOf(
  context: BenchContext,
  scope: Scope,
  bytes: number,
  pushed: { readonly rows: readonly (readonly number[])[]; readonly rowBytes: number },
): Promise<TimedCase[]> {
  return context.device.kind === 'cpu' ? copyCeilings(context, scope, bytes) : pushCeilings(context, scope, pushed)
}

/** A dispatch in one stream, or a phase of it: what comes before is not timed, what comes after neither. */
export function lowLatencyDispatchOf(format: LowLatencyKind['format'], part: Part = 'both'): Operation {
  return async (context, scope) => {
    const { options, group, device, routing, stopwatch } = context
    const { hidden } = options
    const bench = await LowLatencyBench.create(context, scope, kindOf(context, { format, weighted: true }))
    const rowBytes = lowLatencyRowBytes(format, hidden)
    let last: LowLatencyDispatchResult | undefined
    const { slots: selections } = routing.received(group.rank)
    const counted = lowLatencyDispatchBytes(bench.sent, { inputBytes: hidden * 2, rowBytes, selections }, part)
    return {
      ...{ ...counted, rule: rules.lowLatencyDispatch },
      ceilings: await ceilingsOf(context, scope, counted.bytes, { rows: bench.sentRows, rowBytes }),
      subject: {
        ...{ name: 'dispatch', sets: slots },
        async prepare(iteration) {
          if (part !== 'receive') return
          last = bench.dispatch(iteration, true)
          await last.event.synchronize()
        },
        async time(iteration) {
          const repeats = part === 'both' && device.kind === 'cuda' ? calls : 1
          const { streamUs } = await stopwatch.time(() => {
            if (part === 'receive') return void last!.hook!()
            for (let call = 0; call < repeats; call++) {
              if (call > 0) bench.buffer.release(last!.handle)
              last = bench.dispatch(iteration + call, part === 'send')
            }
          })
          if (part === 'send') await last!.hook!().synchronize()
          bench.buffer.release(last!.handle)
          return streamUs / repeats
        },
      },
      async check() {
        const { packedRecvX, packedRecvCount, handle } = last!
        const tensors = { packedRecvX, packedRecvCount, srcInfo: handle.srcInfo }
        return checkDispatched(context, await inHostMemory(context, scope, tensors), format)
      },
    }
  }
}

/** Combine of what a dispatch left, as if experts changed nothing. */
export function lowLatencyCombineOf(
  { weighted, useLogfmt = false }: { readonly weighted: boolean; readonly useLogfmt?: boolean },
  part: Part = 'both',
): Operation {
  return async (context, scope) => {
    const { options, group, routing, stopwatch } = context
    const { tokens, hidden } = options
    const kind = kindOf(context, { format: 'bf16', weighted, useLogfmt })
    const sentBytes = lowLatencyRowBytes(useLogfmt ? 'logfmt10' : 'bf16', hidden)
    const bench = await LowLatencyBench.create(context, scope, kind)
    const results: LowLatencyDispatchResult[] = []
    const hooks: ((() => unknown) | undefined)[] = []
    const outs = Array.from({ length: slots }, () => scope.zeros([tokens, hidden], 'bf16'))
    let last = outs[0]!
    const rows = kind.weighted ? routing.matrix : routing.selections
    const counted = lowLatencyCombineBytes(
      { ...bench.sent, toRank: rows[group.rank]! },
      { tokens, rowBytes: hidden * 2, sentBytes, selections: routing.received(group.rank).slots },
      part,
    )
    const combine = (iteration: number, hooked: boolean): (() => unknown) | undefined => {
      const result = results[iteration % slots]!
      last = outs[iteration % slots]!
      return bench.combine(result.packedRecvX, result, last, hooked)
    }
    const homeward = rows.map((_, i) => rows.map((row) => row[i]!))
    return {
      ...counted,
      ...{ rule: combineRuleOf(kind), block: slots },
      ceilings: await ceilingsOf(context, scope, counted.bytes, { rows: homeward, rowBytes: sentBytes }),
      subject: {
        ...{ name: 'combine', sets: slots },
        async prepare(iteration) {
          const result = bench.dispatch(iteration)
          await result.event.synchronize()
          results[iteration % slots] = result
          if (part !== 'receive') return
          hooks[iteration % slots] = combine(iteration, true)
          await stopwatch.stream.synchronize()
        },
        async time(iteration) {
          let hook: (() => unknown) | undefined
          const { streamUs } = await stopwatch.time(() => {
            if (part === 'receive') hooks[iteration % slots]!()
            else hook = combine(iteration, part === 'send')
          })
          hook?.()
          return streamUs
        },
      },
      check: () =>
        checkSums(context, scope, last, (token) =>
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
    const enqueue = (first: number): void => {
      for (let layer = first; layer < first + layers; layer++) bench.combine(answers, bench.dispatch(layer), out)
    }
    enqueue(0)
    await stopwatch.stream.synchronize()
    const graphs: Graph[] = graph
      ? Array.from({ length: slots }, (_, slot) => scope.own(Graph.capture(stopwatch.stream, () => enqueue(slot))))
      : []
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
            else enqueue(slot)
          })
          return streamUs / layers
        },
      },
      check: () =>
        checkSums(context, scope, out, (token) => expectedSum(context, token, new Float32Array(hidden).fill(1), kind)),
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
