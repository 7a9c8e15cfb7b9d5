import type { Tensor } from '@moe-ep/core'
import { permute } from '@moe-ep/deepgemm-permute'
import type { SymmetricMemory } from '@moe-ep/transport'
import type { BenchContext } from '../operations/operation.js'
import type { Push } from './push-plan.js'
import type { Scope } from './scope.js'

/** Pushes row by row: permutes that change nothing, into the peer's memory. */
export class RowPushes {
  readonly #context: BenchContext
  readonly #memory: SymmetricMemory
  readonly #rowBytes: number
  readonly #topkIdx: Tensor
  readonly #inversePermutation: Tensor
  readonly #expertIds: Tensor

  /** `mostRows`: of one push. */
  constructor(
    context: BenchContext,
    scope: Scope,
    { memory, rowBytes, mostRows }: { memory: SymmetricMemory; rowBytes: number; mostRows: number },
  ) {
    this.#context = context
    this.#memory = memory
    this.#rowBytes = rowBytes
    this.#topkIdx = scope.zeros([mostRows, 1], 'i32')
    this.#inversePermutation = scope.zeros([mostRows, 1], 'i32')
    this.#expertIds = scope.zeros([mostRows], 'i32')
  }

  /** Rows from the start of the source to `base` and the push's place behind it. */
  enqueue(source: Tensor, { peer, targetOffset, byteLength }: Push, base: number): void {
    const count = byteLength / this.#rowBytes
    const shape = [count, this.#rowBytes]
    const rows = this.#memory.tensor({ rank: peer, byteOffset: base + targetOffset, shape, dtype: 'u8' })
    permute(source.slice(0, byteLength).reshape(shape), {
      ...{ topkIdx: this.#topkIdx.slice(0, count), numLocalExperts: 1, alignment: 1 },
      expertNumTokensHost: Int32Array.of(count),
      out: {
        rows,
        expertIds: this.#expertIds.slice(0, count),
        inversePermutation: this.#inversePermutation.slice(0, count),
      },
      stream: this.#context.stopwatch.stream,
    })
  }
}
