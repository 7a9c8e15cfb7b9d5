import { MoeEpError } from '@moe-ep/core'

/**
 * The second half of something that was started: call `recvHook`, where there is one, then `receive`. Each is called once.
 * Started, hooked and received at once is the same as done in one step.
 */
export interface Receiver<Result> {
  /** Completes the receive, cheaply: enqueues what is missing on the stream of the first half. */
  readonly recvHook?: () => void
  /** The result, when peers have sent theirs; may enqueue further work on the stream of the first half. */
  readonly receive: () => Promise<Result>
}

/**
 * A receiver that guards its protocol: a second call of either part is ERR_MOE_EP_RELEASED, `receive` before the hook
 * ERR_MOE_EP_ARGUMENT.
 */
export function guardedReceiver<Result>(name: string, { recvHook, receive }: Receiver<Result>): Receiver<Result> {
  let hooked = recvHook === undefined
  let received = false
  const guarded = async (): Promise<Result> => {
    if (received) throw new MoeEpError('ERR_MOE_EP_RELEASED', `${name}: its receiver was called before`)
    if (!hooked) throw new MoeEpError('ERR_MOE_EP_ARGUMENT', `${name}: call recvHook before receive`)
    received = true
    return receive()
  }
  if (recvHook === undefined) return { receive: guarded }
  return {
    recvHook() {
      if (hooked) throw new MoeEpError('ERR_MOE_EP_RELEASED', `${name}: its recvHook was called before`)
      hooked = true
      recvHook()
    },
    receive: guarded,
  }
}

/** Hook, if there is one, and receive: what makes the two halves one step. */
export async function received<Result>(receiver: Receiver<Result>): Promise<Result> {
  receiver.recvHook?.()
  return receiver.receive()
}
