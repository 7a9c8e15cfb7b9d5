import { type DType, decode, encode, Tensor } from '@moe-ep/core'
import { type ExpertWeights, referenceExpert } from '@moe-ep/experts'
import { linearPlacement } from '@moe-ep/layout'
import { randomNumbers } from '../../transport/test/symmetric/numbers.js'

/** A layer over some ranks, as numbers. */
export interface LayerShape {
  /** Tokens of each rank. */
  readonly numTokens: readonly number[]
  readonly hidden: number
  readonly intermediate: number
  readonly numExperts: number
  readonly topk: number
  readonly seed: number
  /** @default 'f32' */
  readonly weightDtype?: DType
  /** Replaces the random choice of an expert, -1 for none. */
  readonly choose?: (random: number) => number
}

/** One rank's tokens: rows that bf16 holds exactly, [T][K]; ids and weights [T][topk]. */
export interface RankInput {
  readonly x: readonly Float32Array[]
  readonly topkIdx: readonly (readonly number[])[]
  readonly topkWeights: readonly (readonly number[])[]
}

/** A made-up layer with its inputs, and what must come out. */
export class Layer {
  readonly shape: LayerShape
  readonly inputs: readonly RankInput[]
  readonly #experts: readonly { readonly w13: Float32Array; readonly w2: Float32Array }[]

  constructor(shape: LayerShape) {
    this.shape = shape
    const { hidden, intermediate, numExperts, seed, weightDtype = 'f32' } = shape
    const random = randomNumbers(seed)
    const values = (count: number, dtype: DType, scale: number): Float32Array =>
      rounded(
        dtype,
        Array.from({ length: count }, () => (random() - 0.5) * scale),
      )
    this.#experts = Array.from({ length: numExperts }, () => ({
      w13: values(2 * intermediate * hidden, weightDtype, 1),
      w2: values(hidden * intermediate, weightDtype, 1),
    }))
    const choose = shape.choose ?? ((value: number) => (value < 0.1 ? -1 : Math.floor(random() * numExperts)))
    const slots = <Value>(make: () => Value): Value[] => Array.from({ length: shape.topk }, make)
    this.inputs = shape.numTokens.map((tokens) => ({
      x: Array.from({ length: tokens }, () => values(hidden, 'bf16', 4)),
      topkIdx: Array.from({ length: tokens }, () => slots(() => choose(random()))),
      topkWeights: Array.from({ length: tokens }, () => slots(() => Math.fround(random()))),
    }))
  }

  get numRanks(): number {
    return this.shape.numTokens.length
  }

  /** Weights of the experts that a rank owns. */
  weightsOf(rank: number): ExpertWeights {
    const { hidden, intermediate, numExperts, weightDtype = 'f32' } = this.shape
    const { begin, end } = linearPlacement(numExperts, this.numRanks).rangeOf(rank)
    const stack = (name: 'w13' | 'w2'): number[] =>
      this.#experts.slice(begin, end).flatMap((expert) => Array.from(expert[name]))
    return {
      w13: Tensor.from(stack('w13'), [end - begin, 2 * intermediate, hidden], weightDtype),
      w2: Tensor.from(stack('w2'), [end - begin, hidden, intermediate], weightDtype),
    }
  }

  /** What a rank hands to the kernel. */
  argumentsOf(rank: number, idDtype: 'i32' | 'i64' = 'i32') {
    const { hidden, topk, numExperts } = this.shape
    const { x, topkIdx, topkWeights } = this.inputs[rank]!
    return {
      hiddenStates: Tensor.from(
        x.flatMap((row) => Array.from(row)),
        [x.length, hidden],
        'bf16',
      ),
      topkIdx: Tensor.from(topkIdx.flat(), [x.length, topk], idDtype),
      topkWeights: Tensor.from(topkWeights.flat(), [x.length, topk], 'f32'),
      weights: this.weightsOf(rank),
      numExperts,
    }
  }

  /** A row through a global expert, rounded as experts leave it. */
  expertRow(expert: number, row: Float32Array): Float32Array {
    const { hidden, intermediate } = this.shape
    return rounded('bf16', referenceExpert({ hidden, intermediate, x: row, ...this.#experts[expert]! }))
  }

  /**
   * The output of a rank, token by token: for each rank that owns experts of the token the weighted sum in slot order, rounded to
   * bf16; of those the sum in rank order, rounded again. `rows` replaces the rank's tokens.
   */
  expectedOf(rank: number, rows: readonly Float32Array[] = this.inputs[rank]!.x): number[][] {
    const placement = linearPlacement(this.shape.numExperts, this.numRanks)
    const { topkIdx, topkWeights } = this.inputs[rank]!
    return rows.map((row, token) => {
      let sum = new Float32Array(row.length)
      for (let owner = 0; owner < this.numRanks; owner++) {
        const { begin, end } = placement.rangeOf(owner)
        const slots = [...topkIdx[token]!.keys()].filter(
          (slot) => topkIdx[token]![slot]! >= begin && topkIdx[token]![slot]! < end,
        )
        if (slots.length === 0) continue
        let partial = new Float32Array(row.length)
        for (const slot of slots) {
          const y = this.expertRow(topkIdx[token]![slot]!, row)
          partial = partial.map((value, i) => value + Math.fround(topkWeights[token]![slot]! * y[i]!))
        }
        const sent = rounded('bf16', partial)
        sum = sum.map((value, i) => value + sent[i]!)
      }
      return Array.from(rounded('bf16', sum))
    })
  }
}

/** The numbers as this dtype holds them. */
export function rounded(dtype: DType, values: ArrayLike<number>): Float32Array {
  return decode(dtype, encode(dtype, values)) as Float32Array
}

/** Buffer sizes that suffice for a layer. */
export function sizesFor({ numTokens, hidden, topk, numExperts }: LayerShape) {
  return { hidden, maxTokensPerRank: Math.max(...numTokens), maxTopk: topk, maxExperts: numExperts }
}
