import { describe, expect, test } from 'vitest'
import { getDevice, Tensor, wrapArrayBuffer, wrapPointer } from '../src/index.js'

const cpu = getDevice('cpu')
const refusal = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
const released = expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' })

describe('allocated memory', () => {
  test.each([0, 1, 127, 4096, 1_000_003])('%d bytes are zeroed, aligned and writable', (byteLength) => {
    const memory = cpu.allocate(byteLength)
    expect([memory.byteLength, memory.arrayBuffer.byteLength, memory.device]).toEqual([byteLength, byteLength, cpu])
    const bytes = new Uint8Array(memory.arrayBuffer)
    expect(bytes.every((byte) => byte === 0)).toBe(true)
    if (byteLength > 0) expect(memory.pointer % 128n).toBe(0n)
    bytes.fill(7)
    expect(new Uint8Array(memory.arrayBuffer).every((byte) => byte === 7)).toBe(true)
    memory.close()
  })

  test.each([-1, 1.5, NaN, Infinity, 2 ** 53])('%d bytes are refused', (byteLength) => {
    expect(() => cpu.allocate(byteLength)).toThrow(refusal)
  })

  test('more than there is says how much was asked for', () => {
    const bytes = 2 ** 52
    const failure = expect.objectContaining({
      code: 'ERR_MOE_EP_OUT_OF_MEMORY',
      message: expect.stringContaining(String(bytes)),
    })
    expect(() => cpu.allocate(bytes)).toThrow(failure)
  })

  test('close detaches every view, twice is fine, and all further use says so', () => {
    const memory = cpu.allocate(64)
    const tensor = new Tensor({ memory, dtype: 'f32', shape: [4, 4] })
    const { data } = tensor
    memory.close()
    memory.close()
    expect([memory.closed, memory.byteLength, data.byteLength]).toEqual([true, 64, 0])
    expect(() => memory.pointer).toThrow(released)
    expect(() => memory.arrayBuffer).toThrow(released)
    expect(() => tensor.data).toThrow(released)
    expect(() => tensor.pointer).toThrow(released)
    expect(() => tensor.toNumbers()).toThrow(released)
  })

  test('using ends it', () => {
    let view: ArrayBuffer
    {
      using memory = cpu.allocate(16)
      view = memory.arrayBuffer
      expect(view.byteLength).toBe(16)
    }
    expect(view.byteLength).toBe(0)
  })
})

describe('memory that somebody else owns', () => {
  test('a typed array is seen in place, from where its view begins', () => {
    const whole = Float32Array.from([1, 2, 3, 4, 5])
    const tensor = Tensor.wrap(whole.subarray(1, 4), [3], 'f32')
    expect(Array.from(tensor.toNumbers())).toEqual([2, 3, 4])
    tensor.data[0] = 9
    whole[3] = 8
    expect([whole[1], ...tensor.toNumbers()]).toEqual([9, 9, 3, 8])
    expect(wrapArrayBuffer(cpu, whole.buffer).byteLength).toBe(20)
  })

  test('a pointer is seen in place', () => {
    const owner = cpu.allocate(64)
    const bytes = new Uint8Array(owner.arrayBuffer)
    const foreign = wrapPointer(cpu, owner.pointer + 16n, 8)
    expect(foreign.pointer).toBe(owner.pointer + 16n)
    const tensor = new Tensor({ memory: foreign, dtype: 'u8', shape: [8] })
    expect(tensor.pointer).toBe(owner.pointer + 16n)
    bytes[17] = 5
    expect(Array.from(tensor.toNumbers())).toEqual([0, 5, 0, 0, 0, 0, 0, 0])
    foreign.close()
    expect(bytes[17]).toBe(5)
  })

  test('buffers that could move or grow, pointers and sizes that cannot be are refused', () => {
    const resizable = new (ArrayBuffer as unknown as new (length: number, options: object) => ArrayBuffer)(8, {
      maxByteLength: 16,
    })
    expect(() => wrapArrayBuffer(cpu, resizable)).toThrow(refusal)
    expect(() => wrapArrayBuffer(cpu, new Uint8Array(new SharedArrayBuffer(8)))).toThrow(refusal)
    for (const pointer of [0n, -1n, 8 as unknown as bigint]) expect(() => wrapPointer(cpu, pointer, 8)).toThrow(refusal)
    const { pointer } = cpu.allocate(8)
    for (const byteLength of [-1, 0.5, NaN]) expect(() => wrapPointer(cpu, pointer, byteLength)).toThrow(refusal)
  })

  test('a detached buffer is refused', () => {
    const gone = new ArrayBuffer(8)
    structuredClone(gone, { transfer: [gone] })
    expect(() => wrapArrayBuffer(cpu, gone)).toThrow(refusal)
  })
})
