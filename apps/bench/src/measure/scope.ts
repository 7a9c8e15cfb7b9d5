import { type Device, type DType, Tensor } from '@moe-ep/core'

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

  own<T extends Closable>(value: T): T {
    this.#owned.push(value)
    return value
  }

  async close(): Promise<void> {
    for (const value of this.#owned.splice(0).reverse()) await value.close()
  }
}
