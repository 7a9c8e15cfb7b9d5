import { describe, expect, test, vi } from 'vitest'
import { getDevice, withWaitOptions } from '../src/index.js'
import { rejection } from './support.js'

const cpu = getDevice('cpu')

describe('a time limit', () => {
  test.each([NaN, -1, -Infinity, '5' as unknown as number, null as unknown as number])(
    'of %s is refused',
    async (timeoutMs) => {
      await using stream = cpu.createStream({ threads: 1 })
      stream.fail('ERR_MOE_EP_CAPACITY', 'full')
      const event = stream.record()
      const refused = await rejection(stream.synchronize({ timeoutMs }))
      expect([refused.code, refused.details]).toEqual(['ERR_MOE_EP_ARGUMENT', { argument: 'timeoutMs' }])
      expect((await rejection(event.synchronize({ timeoutMs }))).code).toBe('ERR_MOE_EP_ARGUMENT')
      // Nothing was begun: the failure is still there to be heard of.
      expect((await rejection(stream.synchronize())).code).toBe('ERR_MOE_EP_CAPACITY')
    },
  )

  test('that is refused leaves no failure of the work unhandled', async () => {
    const failed = Promise.reject(new Error('of the work'))
    expect((await rejection(withWaitOptions(failed, 'work', { timeoutMs: NaN }))).code).toBe('ERR_MOE_EP_ARGUMENT')
  })

  test.each([2 ** 31, 3e9, Infinity])('of %d ms counts as the longest that a timer can hold', async (timeoutMs) => {
    vi.useFakeTimers()
    try {
      const given = withWaitOptions(new Promise(() => {}), 'work', { timeoutMs })
      const outcome = rejection(given)
      let settled = false
      void outcome.then(() => (settled = true))
      await vi.advanceTimersByTimeAsync(2 ** 31 - 2)
      expect(settled).toBe(false)
      await vi.advanceTimersByTimeAsync(1)
      expect((await outcome).code).toBe('ERR_MOE_EP_TIMEOUT')
    } finally {
      vi.useRealTimers()
    }
  })
})
