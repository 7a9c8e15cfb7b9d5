import { bf16ToF32Array, type Device, Graph, Plan, type Stream, type Tensor } from '@moe-ep/core'
import { quantizePerTokenGroup, reference } from '@moe-ep/quant'
import { hostCopies } from '../measure/host-copies.js'
import type { Scope } from '../measure/scope.js'
import { awaitFills } from '../workload/device-words.js'
import { fillRandom, patterns, randomKey } from '../workload/random-words.js'
import { sameNumbers } from '../workload/sample-rows.js'
import type { BenchContext, Operation } from './operation.js'

/** A queue of cuda takes about a thousand launches before the next one waits. */
const callsPerIteration = (device: Device): number => (device.kind === 'cpu' ? 1000 : 384)
const callsPerGraph = 64
/** While a cuda stream stands still, all calls are made. */
const gateUs = 10_000

/** Time of one call while the stream stands still: nothing else competes for the core. `calls` gives microseconds of all. */
function perCall({ stopwatch, device }: BenchContext, calls: (count: number) => number): () => Promise<number> {
  const count = callsPerIteration(device)
  return async () => {
    let microseconds = NaN
    await stopwatch.time(() => {
      microseconds = calls(count)
    }, gateUs)
    return microseconds / count
  }
}

/** JavaScript time of `count` calls in a row. */
function timeOf(count: number, call: () => void): number {
  const began = performance.now()
  for (let i = 0; i < count; i++) call()
  return (performance.now() - began) * 1000
}

/** A command without work, arguments to check or tensors. */
export const enqueueEmpty: Operation = async (context) => {
  const { stream } = context.stopwatch
  const pause = (): void => stream.delay(0)
  return {
    ...{ bytes: 0, ceilings: [] },
    rule: `JavaScript time of one of ${callsPerIteration(context.device)} calls in a row: a pause of no length`,
    subject: { name: 'empty', sets: 1, time: perCall(context, (count) => timeOf(count, pause)) },
    check: () => undefined,
  }
}

interface QuantizeCall {
  readonly stream: Stream
  readonly call: () => void
  check(): Promise<string | undefined>
}

/** Quantises a few rows into given tensors; called once already. */
async function quantizeCall(
  { stopwatch, device, options, group }: BenchContext,
  scope: Scope,
  [rows, hidden]: readonly [number, number],
): Promise<QuantizeCall> {
  const { stream } = stopwatch
  const x = scope.zeros([rows, hidden], 'bf16')
  fillRandom(x, randomKey(options.seed, 'enqueue', group.rank), patterns.bf16)
  const out = { values: scope.zeros([rows, hidden], 'fp8e4m3'), scales: scope.zeros([rows, hidden / 128], 'f32') }
  const call = (): void => void quantizePerTokenGroup(x, { out, stream })
  await awaitFills(device)
  call()
  await stream.synchronize()
  const wrong = (input: Tensor, values: Tensor): string | undefined => {
    const numbers = bf16ToF32Array(input.data as Uint16Array)
    const expected = reference.quantizePerTokenGroup(numbers, { hidden, groupSize: 128, numerics: 'vllm' })
    return sameNumbers(values.data as Uint8Array, expected.values) ? undefined : 'a row differs from the reference'
  }
  return {
    ...{ stream, call },
    async check() {
      const [input, values] = await hostCopies([x, out.values] as const, scope, stream)
      return wrong(input, values)
    },
  }
}

/** A whole operation on next to no data: argument checks, tracing, the native call, and tensors kept alive. */
export const enqueueOperation: Operation = async (context, scope) => {
  const { call, check } = await quantizeCall(context, scope, [1, 128])
  const count = callsPerIteration(context.device)
  return {
    ...{ bytes: 0, ceilings: [], check },
    rule: `JavaScript time of one of ${count} calls in a row: quantise one row of 128 into given tensors`,
    subject: { name: 'operation', sets: 1, time: perCall(context, (calls) => timeOf(calls, call)) },
  }
}

/** Ways to launch one small operation again and again: `cost` gives microseconds of `count` calls. */
const launches = {
  eager: {
    what: 'JavaScript time of one call',
    cost:
      ({ call }) =>
      (count) =>
        timeOf(count, call),
  },
  plan: {
    what: 'JavaScript time of one launch of a plan that is one call',
    cost({ call, stream }, scope) {
      const plan = scope.own(Plan.of(stream, call))
      return (count) => timeOf(count, () => plan.launch(stream))
    },
  },
  graph: {
    what: `JavaScript time of a launch of a graph of ${callsPerGraph} calls, for one of these`,
    cost({ call, stream }, scope) {
      const graph = scope.own(
        Graph.capture(stream, () => {
          for (let i = 0; i < callsPerGraph; i++) call()
        }),
      )
      return (count) => {
        const few = Math.floor(count / callsPerGraph)
        return (timeOf(few, () => graph.launch(stream)) * count) / (few * callsPerGraph)
      }
    },
  },
  'native-loop': {
    what: 'time of one launch of the same plan in a loop of native code',
    cost({ call, stream }, scope) {
      const plan = scope.own(Plan.of(stream, call))
      return (count) => plan.launchTimes(stream, count) / 1000
    },
  },
} as const satisfies Record<
  string,
  { what: string; cost(quantize: QuantizeCall, scope: Scope): (count: number) => number }
>

/** What a small operation costs the host, by the way it is launched. */
export function enqueueLaunchOf(kind: keyof typeof launches): Operation {
  return async (context, scope) => {
    const { what, cost } = launches[kind]
    const quantize = await quantizeCall(context, scope, [16, 256])
    return {
      ...{ bytes: 0, ceilings: [], check: quantize.check },
      rule: `${what}, of ${callsPerIteration(context.device)} in a row: quantise 16 rows of 256 into given tensors`,
      subject: { name: kind, sets: 1, time: perCall(context, cost(quantize, scope)) },
    }
  }
}
