import { getEventListeners } from 'node:events'
import { describe, expect, test, vi } from 'vitest'
import { MoeEpError, withWaitOptions } from '../src/index.js'
import { rejection } from './support.js'

const never = (): Promise<never> => new Promise(() => {})

describe('withWaitOptions', () => {
  test('gives the value, also where limits are set, and leaves no timer and no listener', async () => {
    const { signal } = new AbortController()
    vi.useFakeTimers()
    try {
      expect(await withWaitOptions(Promise.resolve(1), 'work', {})).toBe(1)
      expect(await withWaitOptions(Promise.resolve(2), 'work', { timeoutMs: 1_000, signal })).toBe(2)
      expect(vi.getTimerCount()).toBe(0)
      expect(getEventListeners(signal, 'abort')).toEqual([])
    } finally {
      vi.useRealTimers()
    }
  })

  test('passes a failure on', async () => {
    const failed = (): Promise<never> => Promise.reject(new MoeEpError('ERR_MOE_EP_CAPACITY', 'full'))
    const { signal } = new AbortController()
    for (const options of [{}, { timeoutMs: 1_000 }, { signal }]) {
      expect((await rejection(withWaitOptions(failed(), 'work', options))).code).toBe('ERR_MOE_EP_CAPACITY')
    }
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })

  test('gives up at its deadline and says what it waited for', async () => {
    const error = await rejection(withWaitOptions(never(), 'stream.synchronize', { timeoutMs: 2 }))
    expect([error.code, error.message]).toEqual(['ERR_MOE_EP_TIMEOUT', 'stream.synchronize: not done after 2 ms'])
  })

  test('gives up when its signal fires, before or meanwhile, with the reason as cause', async () => {
    const before = await rejection(
      withWaitOptions(never(), 'work', { signal: AbortSignal.abort('early'), timeoutMs: 1_000 }),
    )
    expect([before.code, before.cause]).toEqual(['ERR_MOE_EP_ABORTED', 'early'])
    const controller = new AbortController()
    const meanwhile = rejection(withWaitOptions(never(), 'work', { signal: controller.signal }))
    controller.abort('late')
    expect([(await meanwhile).code, (await meanwhile).cause]).toEqual(['ERR_MOE_EP_ABORTED', 'late'])
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
  })

  test('a failure after giving up disturbs nobody', async () => {
    let fail: (reason: Error) => void = () => {}
    const work = new Promise<never>((_, reject) => (fail = reject))
    expect((await rejection(withWaitOptions(work, 'work', { timeoutMs: 1 }))).code).toBe('ERR_MOE_EP_TIMEOUT')
    const unhandled: unknown[] = []
    const listen = (reason: unknown): void => void unhandled.push(reason)
    process.on('unhandledRejection', listen)
    fail(new Error('nobody waits any more'))
    await new Promise((resolve) => setImmediate(resolve))
    process.off('unhandledRejection', listen)
    expect(unhandled).toEqual([])
  })
})
