import { type ExpertPlacement, linearPlacement } from '@moe-ep/layout'
import { randomKey, wordAt } from './random-words.js'

/** What decides a routing. */
export interface RoutingOptions {
  readonly ranks: number
  readonly tokens: number
  readonly topk: number
  readonly experts: number
  readonly seed: number
  /** Which experts a token picks. @default 'uniform' */
  readonly routing?: RoutingKind
}

/**
 * `uniform`: all experts are equally likely. `skewed`: half of a token's slots (rounded up) name experts of rank 0, the others those of
 * one other rank, so that rank 0 receives every token and half of all selections.
 */
export type RoutingKind = 'uniform' | 'skewed'

/** Rows that a rank receives, by source rank, then by token. */
export interface Received {
  readonly rows: number
  readonly sourceRank: Int32Array
  readonly sourceToken: Int32Array
  /** [rows, K]: local expert ids, -1 for experts of other ranks. */
  readonly topkIdx: Int32Array
  /** Slots that name a local expert. */
  readonly slots: number
}

/**
 * Random routing: every token picks `topk` different experts. Every rank can compute that of all ranks, so that expected results need no
 * communication.
 */
export class Routing {
  readonly options: RoutingOptions
  readonly placement: ExpertPlacement
  /** `matrix[i][j]`: tokens that rank i sends to rank j. */
  readonly matrix: readonly (readonly number[])[]
  /** `selections[i][j]`: slots of rank i that name an expert of rank j. */
  readonly selections: readonly (readonly number[])[]
  readonly #topkIdx: readonly Int32Array[]

  constructor(options: RoutingOptions) {
    this.options = options
    this.placement = linearPlacement(options.experts, options.ranks)
    this.#topkIdx = Array.from({ length: options.ranks }, (_, rank) => drawExperts(options, rank))
    this.matrix = this.#topkIdx.map((ids) => this.#destinations(ids))
    this.selections = this.#topkIdx.map((ids) => this.#slotCounts(ids))
  }

  /** [T, K]: global expert ids of a rank's tokens. */
  topkIdx(rank: number): Int32Array {
    return this.#topkIdx[rank]!
  }

  /** Rows that the busiest receiver gets. */
  get mostReceived(): number {
    return Math.max(...this.matrix.map((_, j) => this.matrix.reduce((sum, row) => sum + row[j]!, 0)))
  }

  received(rank: number): Received {
    const { tokens, topk } = this.options
    const { begin, end } = this.placement.rangeOf(rank)
    const rows = this.matrix.reduce((sum, row) => sum + row[rank]!, 0)
    const result = {
      rows,
      sourceRank: new Int32Array(rows),
      sourceToken: new Int32Array(rows),
      topkIdx: new Int32Array(rows * topk),
    }
    let row = 0
    let slots = 0
    this.#topkIdx.forEach((ids, source) => {
      for (let token = 0; token < tokens; token++) {
        const local = ids
          .subarray(token * topk, (token + 1) * topk)
          .map((id) => (id >= begin && id < end ? id - begin : -1))
        const found = local.reduce((sum, id) => sum + Number(id >= 0), 0)
        if (found === 0) continue
        result.sourceRank[row] = source
        result.sourceToken[row] = token
        result.topkIdx.set(local, row * topk)
        slots += found
        row++
      }
    })
    return { ...result, slots }
  }

  #slotCounts(ids: Int32Array): number[] {
    const counts = Array.from({ length: this.options.ranks }, () => 0)
    for (const id of ids) counts[this.placement.rankOf(id)]!++
    return counts
  }

  #destinations(ids: Int32Array): number[] {
    const { ranks, tokens, topk } = this.options
    const rankOfExpert = Int32Array.from({ length: this.options.experts }, (_, expert) => this.placement.rankOf(expert))
    const counts = Array.from({ length: ranks }, () => 0)
    for (let token = 0; token < tokens; token++) {
      const destinations = new Set(
        Array.from(ids.subarray(token * topk, (token + 1) * topk), (id) => rankOfExpert[id]!),
      )
      for (const rank of destinations) counts[rank]!++
    }
    return counts
  }
}

/** Experts of every token, [T, K]. */
function drawExperts(options: RoutingOptions, rank: number): Int32Array {
  const { ranks, tokens, topk, experts, seed, routing = 'uniform' } = options
  const key = randomKey(seed, 'routing', rank)
  const otherKey = randomKey(seed, 'routing to another rank', rank)
  const random = (of: number, index: number): number => (wordAt(of, index) >>> 0) / 2 ** 32
  const placement = linearPlacement(experts, ranks)
  const pool = Int32Array.from({ length: experts }, (_, expert) => expert)
  const half = routing === 'skewed' && ranks > 1 ? Math.ceil(topk / 2) : 0
  const first = placement.rangeOf(0)
  const result = new Int32Array(tokens * topk)
  for (let token = 0; token < tokens; token++) {
    const picks = result.subarray(token * topk, (token + 1) * topk)
    const draw = (slot: number): number => random(key, token * topk + slot)
    if (half === 0) {
      pick(pool, picks, draw)
      continue
    }
    const other = placement.rangeOf(1 + Math.floor(random(otherKey, token) * (ranks - 1)))
    pick(pool.subarray(first.begin, first.end), picks.subarray(0, half), draw)
    pick(pool.subarray(other.begin, other.end), picks.subarray(half), (slot) => draw(half + slot))
  }
  return result
}

/** Draws without replacement: each pick swaps with the head of what is left. */
function pick(pool: Int32Array, picks: Int32Array, draw: (slot: number) => number): void {
  for (let slot = 0; slot < picks.length; slot++) {
    const place = slot + Math.floor(draw(slot) * (pool.length - slot))
    const expert = pool[place]!
    pool[place] = pool[slot]!
    pool[slot] = expert
    picks[slot] = expert
  }
}
