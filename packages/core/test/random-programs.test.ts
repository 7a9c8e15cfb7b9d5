import * as fc from 'fast-check'
import { expect, test } from 'vitest'
import { repeats } from '../../../tooling/vitest/repeats.js'
import {
  copyTensor,
  CudaDevice,
  type Event,
  getDefaultDevice,
  getDevice,
  Graph,
  Plan,
  type Stream,
  Tensor,
} from '../src/index.js'
import { collect } from './collect.js'

const device = getDefaultDevice()
const cpu = getDevice('cpu')

const slotCount = 6
const streamCount = 3
const slot = fc.nat(slotCount - 1)
const queue = fc.nat(streamCount - 1)
const copy = fc.record({ kind: fc.constant('copy' as const), from: slot, to: slot, on: queue })
const ending = fc.constantFrom('closed', 'forgotten')
const step = fc.oneof(
  { arbitrary: copy, weight: 6 },
  { arbitrary: fc.record({ kind: fc.constant('renew' as const), slot, host: fc.boolean(), ending }), weight: 3 },
  fc.record({ kind: fc.constant('delay' as const), on: queue, us: fc.nat(300) }),
  fc.record({ kind: fc.constant('stream' as const), on: queue, ending }),
  fc.record({ kind: fc.constant('read' as const), slot, on: queue }),
  {
    arbitrary: fc.record({
      kind: fc.constantFrom('graph' as const, 'owner' as const, 'plan' as const),
      body: fc.array(copy, { minLength: 1, maxLength: 6 }),
      on: queue,
      launches: fc.integer({ min: 1, max: 3 }),
      ending,
    }),
    weight: 2,
  },
  fc.constant({ kind: 'collect' as const }),
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never
type Copy = typeof copy extends fc.Arbitrary<infer T> ? T : never

/** Numbers that tell of which content, and where, each element is. */
const contentOf = (id: number, count: number): Int32Array =>
  Int32Array.from({ length: count }, (_, i) => id * 65536 + i)

/** Runs steps on streams, in the order of events alone, and what they would do one after the other beside it. */
class Machine {
  private readonly count: number
  private contents = 0
  private readonly tensors: Tensor[] = []
  private readonly expected: number[] = []
  private readonly used: (Event | undefined)[] = []
  private readonly streams: Stream[] = []
  private readonly pending: Promise<void>[] = []
  /** Ends of streams over others, which those outlive. */
  private readonly wrapped = new WeakMap<Stream, Promise<unknown>>()

  constructor(count: number) {
    this.count = count
    for (let i = 0; i < slotCount; i++) this.fill(i, i % 2 === 0)
    for (let i = 0; i < streamCount; i++) this.streams.push(device.createStream({ threads: 1 }))
  }

  private fill(at: number, host: boolean): void {
    const id = this.contents++
    this.tensors[at] = Tensor.copyOf(contentOf(id, this.count), [this.count], 'i32', host ? cpu : device)
    this.expected[at] = id
    this.used[at] = undefined
  }

  private enqueueCopy({ from, to }: Copy, stream: Stream): void {
    if (from !== to) copyTensor(this.tensors[from]!, this.tensors[to]!, { stream })
  }

  private model({ from, to }: Copy): void {
    this.expected[to] = this.expected[from]!
  }

  /** Work on slots: after all that used them, and before all that will. */
  private use(slots: number[], stream: Stream, work: () => void): void {
    for (const at of slots) {
      const event = this.used[at]
      if (event) stream.wait(event)
    }
    work()
    const event = stream.record()
    for (const at of slots) this.used[at] = event
  }

  /** Copies on two streams of one capture. */
  private enqueueJoined(body: Copy[], main: Stream, side: Stream): void {
    const last = new Map<number, { event: Event; stream: Stream }>()
    side.wait(main.record())
    for (const one of body) {
      const stream = one.on === 0 ? side : main
      for (const at of [one.from, one.to]) {
        const before = last.get(at)
        if (before && before.stream !== stream) stream.wait(before.event)
      }
      this.enqueueCopy(one, stream)
      const event = stream.record()
      for (const at of [one.from, one.to]) last.set(at, { event, stream })
    }
    main.wait(side.record())
  }

  private closeWrapped(wrapped: Stream, owner: Stream): void {
    const closed = Promise.all([this.wrapped.get(owner), wrapped.close()]).then(() => void owner.closed)
    this.wrapped.set(owner, closed)
    this.pending.push(closed)
  }

  /** A graph, or one of the owner of wrapped streams that the work goes to. */
  private capture(body: Copy[], stream: Stream, side: Stream, owner: boolean): Graph {
    if (!owner || !(device instanceof CudaDevice))
      return Graph.capture(stream, () => this.enqueueJoined(body, stream, side))
    const wrapped = device.wrapStream(stream.cudaHandle)
    const wrappedSide = device.wrapStream(side.cudaHandle)
    const graph = Graph.capture(stream, () => {
      side.wait(stream.record())
      this.enqueueJoined(body, wrapped, wrappedSide)
      stream.wait(side.record())
    })
    this.closeWrapped(wrapped, stream)
    this.closeWrapped(wrappedSide, side)
    return graph
  }

  private async read(at: number, stream: Stream, id: number): Promise<void> {
    expect(await this.tensors[at]!.read({ stream })).toEqual(contentOf(id, this.count))
  }

  private renewStream(at: number, how: string): void {
    const old = this.streams[at]!
    this.streams[at] = device.createStream({ threads: 1 })
    if (how === 'closed') this.pending.push(Promise.resolve(this.wrapped.get(old)).then(() => old.close()))
  }

  run(one: Step): void {
    const stream = 'on' in one ? this.streams[one.on]! : this.streams[0]!
    switch (one.kind) {
      case 'copy':
        this.use([one.from, one.to], stream, () => this.enqueueCopy(one, stream))
        this.model(one)
        break
      case 'renew': {
        const old = this.tensors[one.slot]!
        this.fill(one.slot, one.host)
        if (one.ending === 'closed') old.memory.close()
        break
      }
      case 'delay':
        stream.delay(one.us)
        break
      case 'stream':
        this.renewStream(one.on, one.ending)
        break
      case 'read':
        this.use([one.slot], stream, () => this.pending.push(this.read(one.slot, stream, this.expected[one.slot]!)))
        break
      case 'collect':
        collect()
        break
      default: {
        const side = this.streams[(one.on + 1) % streamCount]!
        const made =
          one.kind === 'plan'
            ? Plan.of(stream, () => one.body.forEach((each) => this.enqueueCopy(each, stream)))
            : this.capture(one.body, stream, side, one.kind === 'owner')
        const slots = [...new Set(one.body.flatMap(({ from, to }) => [from, to]))]
        for (let i = 0; i < one.launches; i++) {
          this.use(slots, stream, () => made.launch(stream))
          one.body.forEach((each) => this.model(each))
        }
        if (one.ending === 'closed') made.close()
      }
    }
  }

  async finish(): Promise<void> {
    for (let at = 0; at < slotCount; at++) this.run({ kind: 'read', slot: at, on: 0 })
    await Promise.all(this.pending)
    await Promise.all(this.streams.map((stream) => stream.close()))
  }
}

test('random work on many streams, whose parts are closed and forgotten meanwhile, does what it would in order', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 10, maxLength: 120 }),
      fc.integer({ min: 1, max: 5000 }),
      async (steps, count) => {
        const machine = new Machine(count)
        for (const one of steps) machine.run(one)
        await machine.finish()
      },
    ),
    { numRuns: repeats(60) },
  )
})
