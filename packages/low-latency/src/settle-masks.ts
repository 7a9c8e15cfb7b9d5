import { MoeEpError, type Stream } from '@moe-ep/core'
import type { LowLatencyHandle } from './call-types.js'
import { native } from './native.js'

/** What the rounds of an agreement are made of. */
export interface Rounds {
  readonly stream: Stream
  /** Takes part in the others' first round with an error. */
  readonly refuse: (error: unknown) => void
  /** Enqueues a dispatch without rows that settles masks, in a slot if one is given. */
  readonly dispatch: (slot: number | undefined) => LowLatencyHandle
  readonly release: (handle: LowLatencyHandle) => void
}

/**
 * Rounds until one has found the same mask in all heads. The first one finds out who is late, so there are two at least.
 * @throws what the stream failed with before, which the others are told, and what a round fails with for another reason than masks.
 */
export async function settleMasks({ stream, refuse, dispatch, release }: Rounds): Promise<void> {
  await stream.synchronize().catch((error: unknown) => {
    // That ranks disagreed before is why they agree now.
    if (isMaskMismatch(error)) return
    try {
      refuse(error)
    } catch {
      // Without a slot nobody can be told, and the first failure is what counts.
    }
    throw error
  })
  let handle = dispatch(undefined)
  try {
    for (let round = 1; ; round++) {
      // Where masks differed all have heard it, and mask the same ranks from now on.
      const settled = await stream.synchronize().then(
        () => true,
        (error: unknown) => {
          if (isMaskMismatch(error)) return false
          throw error
        },
      )
      if (settled && round > 1) return
      // In the same slot, which nobody takes between the two.
      release(handle)
      handle = dispatch(handle.slot)
    }
  } finally {
    release(handle)
  }
}

/** Whether a dispatch failed because masks differ. */
function isMaskMismatch(error: unknown): boolean {
  const { code, message } = MoeEpError.from(error)
  return code === 'ERR_MOE_EP_MISMATCH' && message.includes(native().maskArgument)
}
