import { setFlagsFromString } from 'node:v8'
import { MessageChannel } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import { getDevice, requireTensor, Tensor, wrapArrayBuffer } from '../src/index.js'
import { native } from '../src/native.js'

const cpu = getDevice('cpu')
const released = expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' })

/** Takes a buffer's bytes away, as its own `transfer()` does where the runtime has one. */
const detach = ((): ((buffer: ArrayBuffer) => void) => {
  setFlagsFromString('--allow-natives-syntax')
  const run = new Function('buffer', '%ArrayBufferDetach(buffer)') as (buffer: ArrayBuffer) => void
  run(new ArrayBuffer(1))
  setFlagsFromString('--no-allow-natives-syntax')
  return run
})()

describe('the ArrayBuffer behind a wrapped tensor', () => {
  test('does not leave through a message port', () => {
    const ids = new BigInt64Array([1n, 2n, 3n, 4n])
    const tensor = Tensor.wrap(ids, [4], 'i64')
    const { port1, port2 } = new MessageChannel()
    try {
      // Newer runtimes refuse, older ones send a copy.
      port1.postMessage(ids, [ids.buffer])
    } catch (error) {
      expect((error as Error).name).toBe('DataCloneError')
    }
    port1.close()
    port2.close()
    expect(ids.length).toBe(4)
    expect(tensor.data).toEqual(new BigInt64Array([1n, 2n, 3n, 4n]))
  })

  test('that lost its bytes in another way: the memory counts as closed', () => {
    const stored = new Float32Array(8)
    const tensor = Tensor.wrap(stored, [8], 'f32')
    const { data, memory } = tensor
    expect(memory.closed).toBe(false)
    detach(stored.buffer)
    expect(memory.closed).toBe(true)
    expect(data.length).toBe(0)
    expect(() => tensor.data).toThrow(released)
    expect(() => memory.pointer).toThrow(released)
    expect(() => requireTensor('x', tensor)).toThrow(released)
  })

  test('native code checks for itself', () => {
    const stored = new Float32Array(8)
    const handle = native().wrapBuffer(stored.buffer, 0, 32)
    expect(native().memoryView(handle, 0, 32).byteLength).toBe(32)
    detach(stored.buffer)
    expect(() => native().memoryView(handle, 0, 32)).toThrow(released)
    expect(() => native().wrapBuffer(stored.buffer, 0, 0)).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }),
    )
    expect(() => native().wrapBuffer(new ArrayBuffer(8), 4, 5)).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }),
    )
  })

  test('stays usable for its owner after the memory was closed', () => {
    const stored = Uint8Array.from([1, 2, 3])
    const memory = wrapArrayBuffer(cpu, stored)
    const view = new Uint8Array(memory.arrayBuffer)
    memory.close()
    expect([Array.from(stored), view.length]).toEqual([[1, 2, 3], 0])
  })
})
