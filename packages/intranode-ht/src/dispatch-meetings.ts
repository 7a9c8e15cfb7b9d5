import { type Device, type Event, MoeEpError, type Stream, type Tensor } from '@moe-ep/core'
import type { Lease, ProcessGroup, SlotRing } from '@moe-ep/transport'
import type { IntranodeBufferSizes } from './buffer-layout.js'
import { callOf } from './call-options.js'
import { requireNotCapturing } from './dispatch-arguments.js'
import type { DispatchPlan } from './dispatch-handle.js'
import type { DispatchOptions, RefuseOptions } from './dispatch-types.js'
import { enqueueNotify, enqueueNotifyCached, type KernelCall } from './kernel-calls.js'
import type { BufferHandle } from './native.js'
import { emptyPlan, HostCounts, settlePlan, sharedArguments } from './plan.js'
import type { Refuser } from './refuser.js'
import { type Refused, settled } from './settled.js'

/** Of which buffer dispatches begin. */
interface MeetingsOptions {
  readonly buffer: BufferHandle
  readonly group: ProcessGroup
  readonly device: Device
  readonly timeoutMs: number
  readonly sizes: Required<IntranodeBufferSizes>
  readonly slots: SlotRing
  readonly refuser: Refuser
}

/** What the checks of a dispatch found out. */
interface Checked {
  /** Of a grouped dispatch, whose rows have a place for each selection: slots of a token. */
  readonly groupedTopk: number | undefined
  /** Rows that this rank can take. */
  readonly room: number
}

/** What makes one meeting. */
interface Meeting extends Checked {
  readonly call: number
  readonly kernel: KernelCall
  /** Whether the host waits for counts. */
  readonly awaited: boolean
}

/** The first half of a dispatch. */
export interface Begun {
  readonly lease: Lease
  readonly stream: Stream
  readonly kernel: KernelCall
  readonly plan: DispatchPlan
  /** Of a dispatch that awaits counts: its plan is complete at `counted`, and a device has left `counts` then. */
  readonly counts: Tensor | undefined
  readonly counted: Event | undefined
}

/**
 * Where ranks meet before rows are sent, one meeting for each dispatch: there they hear how many rows come, or why one of them has
 * none to send.
 */
export class DispatchMeetings {
  readonly #options: MeetingsOptions
  readonly #hostCounts: HostCounts
  /** Dispatches so far, refused ones too: by their numbers ranks tell them apart. */
  #calls = 0

  constructor(options: MeetingsOptions) {
    this.#options = options
    this.#hostCounts = new HostCounts(options.device, options.sizes, options.group.worldSize)
  }

  /**
   * Checks a dispatch, takes a slot, orders the stream after the slot's last user, and enqueues the meeting. What goes wrong before
   * that is told to the other ranks instead. `awaited`: the call cannot be captured.
   */
  begin(x: Tensor, options: DispatchOptions, awaited: boolean, check: () => Checked): Begun | Refused {
    const { buffer, slots } = this.#options
    const call = this.#calls++
    let lease: Lease | undefined
    try {
      const checked = check()
      const { stream, timeoutMs, numSms } = callOf(this.#options, options)
      if (awaited) requireNotCapturing(stream)
      lease = slots.acquire(options.slot)
      if (options.previousEvent !== undefined) stream.wait(options.previousEvent)
      if (lease.previous !== undefined) stream.follow(lease.previous)
      const kernel: KernelCall = { buffer, slot: lease.slot, stream, timeoutMs, numSms }
      const { plan, counts } = this.#enqueue(x, options, { call, kernel, awaited, ...checked })
      const counted = awaited && options.plan === undefined ? stream.record() : undefined
      return { lease, stream, kernel, plan, counts, counted }
    } catch (error) {
      lease?.release()
      return this.#refused(call, MoeEpError.from(error), options, awaited)
    }
  }

  /** Comes to the next meeting with nothing but an error. */
  refuse(error: unknown, options: RefuseOptions): Refused {
    return this.#refused(this.#calls++, error, options, true)
  }

  /** The plan when its counts are known: the dispatch's own, or the one that was given. */
  async settledPlan({ plan: given }: DispatchOptions, { plan, counts, counted, stream }: Begun): Promise<DispatchPlan> {
    if (given !== undefined) return given
    await settled(counted!, stream)
    return settlePlan(plan, counts)
  }

  close(): void {
    this.#hostCounts.close()
  }

  /** The slot is the one that the call would have had: the other ranks hold it for as long as they do not know. */
  #refused(call: number, error: unknown, options: RefuseOptions | undefined, awaited: boolean): Refused {
    const { slots, refuser } = this.#options
    let lease: Lease | undefined
    try {
      lease = slots.acquire(options?.slot)
    } catch {
      // Without a slot it meets the others all the same.
    }
    return { error, lease, told: refuser.dispatch(call, error, options, awaited) }
  }

  #enqueue(
    x: Tensor,
    options: DispatchOptions,
    { call, kernel, awaited, groupedTopk, room }: Meeting,
  ): Pick<Begun, 'plan' | 'counts'> {
    const { topkIdx, topkWeights, scales, numExperts, numChannels } = options
    const agreed = { call, x, scales, topkIdx, hasWeights: topkWeights !== undefined }
    if (options.plan !== undefined) {
      enqueueNotifyCached(kernel, sharedArguments({ ...agreed, cached: true }, options.plan), options.plan)
      return { plan: options.plan, counts: undefined }
    }
    const { device, group, sizes } = this.#options
    const plan = emptyPlan({
      ...{ device, rank: group.rank, numRanks: group.worldSize, groupedTopk },
      ...{ numTokens: x.shape[0]!, numExperts: numExperts!, numChannels, maxChannels: sizes.maxChannels },
      expertAlignment: options.expertAlignment ?? (groupedTopk === undefined ? 1 : 128),
    })
    const shared = sharedArguments({ ...agreed, cached: false }, plan)
    const counts = awaited ? this.#hostCounts.of(kernel.slot, plan.numRecvTokensPerExpert.numel) : undefined
    enqueueNotify(kernel, { shared, topkIdx: topkIdx!, room, hostCounts: counts }, plan)
    return { plan, counts }
  }
}
