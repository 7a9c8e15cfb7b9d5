import { type Device, type DType, dtypes, Tensor } from '@moe-ep/core'

interface Closable {
  close(): unknown
}

/** Owns what one measurement allocates: hundreds of megabytes cannot wait for a garbage collection. */
export class Scope {
  readonly device: Device
  readonly #owned: Closable[] = []

  constructor(device: Device) {
    this.device = device
  }

  zeros(shape: readonly number[], dtype: DType): Tensor {
    const tensor = Tensor.zeros(shape, dtype, this.device)
    this.own(tensor.memory)
    return tensor
  }

  /** Zeros [..., rows, columns] whose last two dimensions lie column by column, columns a multiple of four rows apart. */
  columnMajor(shape: readonly number[], dtype: DType): Tensor {
    const [rows, columns] = shape.slice(-2) as [number, number]
    const columnStride = Math.ceil(rows / 4) * 4
    const matrix = columnStride * columns
    const batches = shape.length === 2 ? 1 : shape[0]!
    const memory = this.own(this.device.allocate((batches * matrix * dtypes[dtype].bits) / 8))
    const strides = [...(shape.length === 2 ? [] : [matrix]), 1, columnStride]
    return new Tensor({ memory, dtype, shape, strides })
  }

  own<T extends Closable>(value: T): T {
    this.#owned.push(value)
    return value
  }

  async close(): Promise<void> {
    for (const value of this.#owned.splice(0).reverse()) await value.close()
  }
}
