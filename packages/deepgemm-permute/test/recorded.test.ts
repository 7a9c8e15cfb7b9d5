import { copyTensor, CudaDevice, Graph, Plan, type Stream, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { moePermute, permute, permuteMasked } from '../src/index.js'
import { device, onHost, randomBits } from './support.js'

const x = randomBits([3, 4], 'u8')
const scales = randomBits([3, 2], 'f32')

/** What an operation gave, by name. */
type Tensors = Readonly<Record<string, Tensor>>
interface Call {
  readonly topkIdx: Tensor
  readonly stream: Stream
}

/** All numbers of all tensors, and of the gaps between columns. */
async function numbersOf(tensors: Tensors, stream: Stream): Promise<Record<string, number[]>> {
  const { scales, ...others } = await onHost(tensors, stream)
  const gaps = new Tensor({ memory: scales!.memory, dtype: 'f32', shape: [scales!.memory.byteLength / 4] })
  return Object.fromEntries(
    Object.entries({ ...others, gaps }).map(([name, tensor]) => [name, Array.from(tensor.toNumbers())]),
  )
}

const record: Record<string, (stream: Stream, body: (on: Stream) => void) => Graph | Plan> = {
  'a graph': (stream, body) => Graph.capture(stream, () => body(stream)),
  'a plan': (stream, body) => Plan.of(stream, () => body(stream)),
  ...(device instanceof CudaDevice && {
    'a graph of the owner of its stream': (stream, body) => {
      const wrapped = (device as CudaDevice).wrapStream(stream.cudaHandle)
      const graph = Graph.capture(stream, () => body(wrapped))
      void wrapped.close()
      return graph
    },
  }),
}
const options = { scales, scaleLayout: 'column', numLocalExperts: 2 } as const
const operations: Record<string, (call: Call) => Tensors> = {
  'permute, padding ids -1': (call) => ({ ...permute(x, { ...options, alignment: 2, ...call }) }) as Tensors,
  "permute, fill 'expert'": (call) =>
    ({ ...permute(x, { ...options, alignment: 2, fill: 'expert', ...call }) }) as Tensors,
  "permute, fill 'tile'": (call) => ({ ...permute(x, { ...options, alignment: 2, fill: 'tile', ...call }) }) as Tensors,
  permuteMasked: (call) => ({ ...permuteMasked(x, { ...options, maxTokens: 3, ...call }) }) as Tensors,
  moePermute: (call) => ({ ...moePermute(x, { ...options, ...call }) }) as Tensors,
}

test.each(Object.keys(record).flatMap((kind) => Object.keys(operations).map((name) => [name, kind] as const)))(
  '%s: every replay of %s gives what a fresh call gives, with zeros where no slot went',
  async (name, kind) => {
    await using stream = device.createStream()
    const topkIdx = Tensor.zeros([3, 1], 'i32')
    const operation = operations[name]!
    let results!: Tensors
    using recorded = record[kind]!(stream, (on) => void (results = operation({ topkIdx, stream: on })))
    for (const ids of [
      [0, 0, 1],
      [1, -1, -1],
      [-1, -1, -1],
      [-1, 1, 0],
    ]) {
      copyTensor(Tensor.from(ids, [3, 1], 'i32'), topkIdx, { stream })
      recorded.launch(stream)
      const fresh = operation({ topkIdx, stream })
      expect(await numbersOf(results, stream)).toEqual(await numbersOf(fresh, stream))
    }
  },
)
