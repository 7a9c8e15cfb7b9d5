import { describe, expect, test } from 'vitest'
import { failureOf } from '../../intranode-ht/test/world.js'
import { guardedReceiver, received } from '../src/index.js'

describe('a receiver', () => {
  test('hooks, then receives', async () => {
    const calls: string[] = []
    const receiver = guardedReceiver('half', {
      recvHook: () => calls.push('hook'),
      receive: async () => calls.push('receive'),
    })
    expect(await received(receiver)).toBe(2)
    expect(calls).toEqual(['hook', 'receive'])
  })

  test('without a hook needs none', async () => {
    const receiver = guardedReceiver('half', { receive: async () => 7 })
    expect(receiver.recvHook).toBeUndefined()
    expect(await received(receiver)).toBe(7)
  })

  test('refuses to receive before its hook, and can still be used rightly then', async () => {
    const receiver = guardedReceiver('half', { recvHook: () => {}, receive: async () => 7 })
    expect((await failureOf(receiver.receive())).code).toBe('ERR_MOE_EP_ARGUMENT')
    expect(await received(receiver)).toBe(7)
  })

  test('refuses every second call, also after a failure', async () => {
    const receiver = guardedReceiver('half', { recvHook: () => {}, receive: () => Promise.reject(new Error('lost')) })
    await expect(received(receiver)).rejects.toThrow('lost')
    expect((await failureOf(receiver.receive())).code).toBe('ERR_MOE_EP_RELEASED')
    expect(() => receiver.recvHook!()).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' }))
  })
})
