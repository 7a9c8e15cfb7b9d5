import { type Device, type Event, MoeEpError, Tensor } from '@moe-ep/core'
import type { Lease } from '@moe-ep/transport'
import { native } from './native.js'

/** A dispatch whose handle has not ended. */
export interface PendingDispatch {
  readonly lease: Lease
  readonly receive: () => Event
  /** When its rows are there; undefined before the receive phase was enqueued. */
  received: Event | undefined
}

/** What combine must know of the messages that a dispatch received: native/calls.h says what is in them. */
export interface ReceivedMessages {
  readonly rows: Tensor
  readonly messages: Tensor
  readonly first: Tensor
}

/** Room for the messages of one slot. */
export function roomForMessages(
  device: Device,
  { ranks, tokens, topk }: { readonly ranks: number; readonly tokens: number; readonly topk: number },
): ReceivedMessages {
  return {
    rows: Tensor.empty([ranks * tokens, native().paddedTopk(topk)], 'i32', device),
    messages: Tensor.empty([ranks * tokens], 'i32', device),
    first: Tensor.empty([ranks + 1], 'i32', device),
  }
}

/** A phase is enqueued once: a second time would wait for what nobody sends. */
export function once(enqueue: () => Event, what: string): () => Event {
  let called = false
  return () => {
    if (called) throw new MoeEpError('ERR_MOE_EP_RELEASED', `the receive hook of this ${what} was called already`)
    called = true
    return enqueue()
  }
}
