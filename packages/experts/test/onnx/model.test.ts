import { describe, expect, it } from 'vitest'
import { encodeOnnxModel } from '../../src/index.js'
import { ProtobufWriter } from '../../src/onnx/protobuf.js'

describe('ProtobufWriter', () => {
  it.each([
    [0, [8, 0]],
    [127, [8, 127]],
    [128, [8, 128, 1]],
    [300, [8, 172, 2]],
    [2 ** 35, [8, 128, 128, 128, 128, 128, 1]],
    [Number.MAX_SAFE_INTEGER, [8, 255, 255, 255, 255, 255, 255, 255, 15]],
  ])('writes the integer %d in seven-bit groups', (value, bytes) => {
    expect([...new ProtobufWriter().integer(1, value).finish()]).toEqual(bytes)
  })

  it('writes field numbers above 15 in two bytes', () => {
    expect([...new ProtobufWriter().integer(20, 2).finish()]).toEqual([160, 1, 2])
  })

  it('writes the length of text in bytes, not characters', () => {
    expect([...new ProtobufWriter().text(2, 'é').finish()]).toEqual([18, 2, 195, 169])
  })
})

describe('encodeOnnxModel', () => {
  it('is a model that the runtime reads back with its names and shapes', async () => {
    const { InferenceSession, Tensor } = await import('onnxruntime-node')
    const model = encodeOnnxModel({
      name: 'product',
      inputs: [
        { name: 'a', shape: ['m', 3] },
        { name: 'b', shape: [2, 3] },
      ],
      outputs: [{ name: 'c', shape: ['m', 2] }],
      nodes: [{ operator: 'Gemm', inputs: ['a', 'b'], outputs: ['c'], attributes: { transB: 1 } }],
    })
    const session = await InferenceSession.create(model)
    expect(session.inputNames).toEqual(['a', 'b'])
    expect(session.inputMetadata[0]).toMatchObject({ type: 'float32', shape: ['m', 3] })
    const { c } = await session.run({
      a: new Tensor('float32', Float32Array.of(1, 2, 3), [1, 3]),
      b: new Tensor('float32', Float32Array.of(1, 0, 0, 1, 1, 1), [2, 3]),
    })
    expect([...(c!.data as Float32Array)]).toEqual([1, 6])
    await session.release()
  })
})
