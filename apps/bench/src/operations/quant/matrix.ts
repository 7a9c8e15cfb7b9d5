import type { DType, Tensor } from '@moe-ep/core'
import type { Scope } from '../../measure/scope.js'
import { fillRandom, type Pattern, patterns, randomKey } from '../../workload/random-words.js'
import type { BenchContext } from '../operation.js'

/** Allocates the matrices of the quantisers; a rank's inputs are the same in every set. */
export class Matrices {
  readonly tokens: number
  readonly hidden: number
  readonly #context: BenchContext
  readonly #scope: Scope

  constructor(context: BenchContext, scope: Scope) {
    this.tokens = context.options.tokens
    this.hidden = context.options.hidden
    this.#context = context
    this.#scope = scope
  }

  random(label: string, shape: readonly number[], dtype: DType, pattern: Pattern): Tensor {
    const tensor = this.#scope.zeros(shape, dtype)
    fillRandom(tensor, randomKey(this.#context.options.seed, label, this.#context.group.rank), pattern)
    return tensor
  }

  /** Random bf16 [tokens, columns]. */
  x(columns = this.hidden): Tensor {
    return this.random('x', [this.tokens, columns], 'bf16', patterns.bf16)
  }

  /** Random codes [tokens, hidden]. */
  codes(dtype: 'fp8e4m3' | 'fp4e2m1'): Tensor {
    return this.random(
      'values',
      [this.tokens, this.hidden],
      dtype,
      dtype === 'fp8e4m3' ? patterns.fp8 : patterns.anyBits,
    )
  }

  /** An output [tokens, columns]. */
  out(dtype: DType, columns = this.hidden): Tensor {
    return this.#scope.zeros([this.tokens, columns], dtype)
  }

  /** An output of any shape. */
  zeros(shape: readonly number[], dtype: DType): Tensor {
    return this.#scope.zeros(shape, dtype)
  }

  /** Zeros [tokens, columns], column by column as TMA reads them. */
  columnMajor(columns: number, dtype: DType): Tensor {
    return this.#scope.columnMajor([this.tokens, columns], dtype)
  }
}
