import { fillFromTable, normalTable, normalTableBf16 } from '../random/normal-values.js'
import { randomStream } from '../random/random-stream.js'
import { blockSize, quantizeBlocks, scaleShape } from './block-quantization.js'
import type { LayerTensor } from './layer-tensors.js'
import { scaleName } from './moe-tensor-names.js'
import type { TensorSource } from './safetensors-writer.js'

/** Elements made at a time. */
const pieceElements = 2 ** 20

/** Makes sources of random values; one table for each deviation serves them all. */
export class RandomTensors {
  readonly #seed: number
  readonly #tables = new Map<string, Float32Array | Uint16Array>()

  constructor(seed: number) {
    this.#seed = seed
  }

  /** What to write for one tensor: itself, and for an fp8 one its scales too. */
  sources(tensor: LayerTensor): TensorSource[] {
    return tensor.dtype === 'fp8' ? this.#fp8(tensor) : [this.#plain(tensor)]
  }

  #plain({ name, shape, deviation, dtype }: LayerTensor): TensorSource {
    const data = (): Iterable<Uint8Array> =>
      this.#pieces(name, shape, pieceElements, this.#table(deviation, dtype === 'bf16'))
    return { name, shape, dtype: dtype === 'bf16' ? 'BF16' : 'F32', data }
  }

  /** Values as f32 and bf16 files of this seed have them, quantised a row of blocks at a time. */
  #fp8({ name, shape, deviation }: LayerTensor): TensorSource[] {
    const [rows, columns] = shape as readonly [number, number]
    const bands = (): Iterable<Uint8Array> =>
      this.#pieces(name, shape, blockSize * columns, this.#table(deviation, false))
    const quantized = function* (): Generator<ReturnType<typeof quantizeBlocks>> {
      for (const { buffer, byteLength } of bands()) {
        const values = new Float32Array(buffer as ArrayBuffer, 0, byteLength / 4)
        yield quantizeBlocks(values, { rows: values.length / columns, columns })
      }
    }
    // The writer asks for the bits first; keeping the few scales meanwhile saves making all values again.
    let scales: Float32Array[] = []
    return [
      {
        ...{ name, shape, dtype: 'F8_E4M3' },
        *data() {
          scales = []
          for (const band of quantized()) {
            scales.push(band.scales)
            yield band.bits
          }
        },
      },
      {
        ...{ name: scaleName(name), shape: scaleShape({ rows, columns }), dtype: 'F32' },
        *data() {
          const kept = scales.length > 0 ? scales : Array.from(quantized(), (band) => band.scales)
          scales = []
          for (const { buffer } of kept) yield new Uint8Array(buffer)
        },
      },
    ]
  }

  /** The bytes of a tensor's values, one piece after another in the same memory. */
  *#pieces(
    name: string,
    shape: readonly number[],
    length: number,
    table: Float32Array | Uint16Array,
  ): Generator<Uint8Array> {
    const elements = shape.reduce((a, b) => a * b, 1)
    const size = Math.min(length, elements)
    const buffer = table instanceof Uint16Array ? new Uint16Array(size) : new Float32Array(size)
    const stream = randomStream(this.#seed, name)
    for (let first = 0; first < elements; first += length) {
      const piece = buffer.subarray(0, Math.min(length, elements - first))
      fillFromTable(piece, { table, stream, first })
      yield new Uint8Array(piece.buffer, 0, piece.byteLength)
    }
  }

  #table(deviation: number, isBf16: boolean): Float32Array | Uint16Array {
    const key = `${deviation} ${isBf16}`
    const table = this.#tables.get(key) ?? (isBf16 ? normalTableBf16 : normalTable)(deviation)
    this.#tables.set(key, table)
    return table
  }
}
