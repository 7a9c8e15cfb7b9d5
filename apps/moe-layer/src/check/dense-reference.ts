import { argumentError } from '@moe-ep/core'
import { throwIfAborted } from '../support/abort.js'
import type { OnProgress } from '../support/progress.js'
import type { ExpertWeights } from '../weights/moe-weights.js'
import { createMatmul, type Matmul } from './matmul.js'

/** A layer's input, routing and weights. */
export interface DenseReferenceOptions {
  /** Token rows [T, K]. */
  readonly x: Float32Array
  /** K. */
  readonly hidden: number
  readonly topk: number
  /** [T, topk]: expert ids, -1 for none. An expert that a token names twice counts twice. */
  readonly topkIdx: Int32Array
  /** [T, topk]. */
  readonly topkWeights: Float32Array
  /** Gives an expert's weights; asked once for every expert that some token names, in ascending order. */
  readonly loadExpert: (expert: number) => Promise<ExpertWeights>
  /** Added to every token unweighted. */
  readonly sharedExpert?: ExpertWeights
  /** Multiplies matrices; made for this call, and closed after it, when absent. */
  readonly matmul?: Matmul
  readonly signal?: AbortSignal
  /** Hears the experts done so far. */
  readonly onProgress?: OnProgress
}

/** Rows that go through an expert at a time; bounds memory when all tokens name one expert. */
const rowsAtOnce = 1024

/**
 * The layer's output [T, K], computed densely: expert by expert, each over copies of the rows that name it, in f32.
 * Weighted rows are summed in f64 and rounded once, so the order of experts leaves no trace. Only one expert's weights
 * are in memory at a time. Nothing of the code that it checks (dispatch, permute, combine) takes part.
 *
 * @throws ERR_MOE_EP_ARGUMENT when lengths do not fit, ERR_MOE_EP_ABORTED, and whatever `loadExpert` throws.
 */
export async function denseReference(options: DenseReferenceOptions): Promise<Float32Array> {
  checkLengths(options)
  const { x, topkIdx, loadExpert, sharedExpert, signal, onProgress } = options
  const matmul = options.matmul ?? (await createMatmul())
  try {
    const sums = new Float64Array(x.length)
    const slotsOfExpert = groupSlots(topkIdx)
    const total = slotsOfExpert.length
    onProgress?.({ done: 0, total })
    for (const [index, [expert, slots]] of slotsOfExpert.entries()) {
      throwIfAborted(signal, 'the dense check')
      await addExpert({
        ...options,
        matmul,
        sums,
        weights: await loadExpert(expert),
        rows: weightedRows(options, slots),
      })
      onProgress?.({ done: index + 1, total })
    }
    if (sharedExpert !== undefined) {
      const rows = Array.from({ length: x.length / options.hidden }, (_, token) => ({ token, weight: 1 }))
      await addExpert({ ...options, matmul, sums, weights: sharedExpert, rows })
    }
    return Float32Array.from(sums)
  } finally {
    if (options.matmul === undefined) await matmul.close()
  }
}

/** One use of an expert by a token. */
interface WeightedRow {
  readonly token: number
  readonly weight: number
}

/** For every expert that is named, ascending, the places in `topkIdx` that name it. */
function groupSlots(topkIdx: Int32Array): [number, number[]][] {
  const groups = new Map<number, number[]>()
  for (const [slot, expert] of topkIdx.entries()) {
    if (expert === -1) continue
    const slots = groups.get(expert)
    if (slots === undefined) groups.set(expert, [slot])
    else slots.push(slot)
  }
  return [...groups].sort(([a], [b]) => a - b)
}

function weightedRows({ topk, topkWeights }: DenseReferenceOptions, slots: readonly number[]): WeightedRow[] {
  return slots.map((slot) => ({ token: Math.floor(slot / topk), weight: topkWeights[slot]! }))
}

interface ExpertWork {
  readonly x: Float32Array
  readonly hidden: number
  readonly weights: ExpertWeights
  readonly rows: readonly WeightedRow[]
  readonly matmul: Matmul
  readonly sums: Float64Array
  readonly signal?: AbortSignal
}

/** Adds `weight * expert(row of token)` to the sums of every listed token. */
async function addExpert({ x, hidden, weights, rows, matmul, sums, signal }: ExpertWork): Promise<void> {
  for (let start = 0; start < rows.length; start += rowsAtOnce) {
    throwIfAborted(signal, 'the dense check')
    const part = rows.slice(start, start + rowsAtOnce)
    const input = new Float32Array(part.length * hidden)
    for (const [row, { token }] of part.entries()) {
      input.set(x.subarray(token * hidden, (token + 1) * hidden), row * hidden)
    }
    const gateUp = await matmul.product(input, weights.w13, hidden)
    const intermediate = weights.w2.length / hidden
    const output = await matmul.product(siluAndMultiply(gateUp, intermediate), weights.w2, intermediate)
    for (const [row, { token, weight }] of part.entries()) {
      for (let i = 0; i < hidden; i++) sums[token * hidden + i]! += weight * output[row * hidden + i]!
    }
  }
}

/** `silu(gate) * up` [m, I] of rows [m, 2I] with the gate half first. */
function siluAndMultiply(gateUp: Float32Array, intermediate: number): Float32Array {
  const result = new Float32Array(gateUp.length / 2)
  for (let i = 0; i < result.length; i++) {
    const column = i % intermediate
    const place = 2 * (i - column) + column
    const gate = gateUp[place]!
    result[i] = (gate / (1 + Math.exp(-gate))) * gateUp[place + intermediate]!
  }
  return result
}

function checkLengths({ x, hidden, topk, topkIdx, topkWeights }: DenseReferenceOptions): void {
  for (const [name, value] of Object.entries({ hidden, topk })) {
    if (!Number.isSafeInteger(value) || value < 1) throw argumentError(name, 'a positive integer', value)
  }
  if (x.length % hidden !== 0) throw argumentError('x', `a multiple of ${hidden} elements`, x.length)
  const slots = (x.length / hidden) * topk
  if (topkIdx.length !== slots) throw argumentError('topkIdx', `${slots} elements`, topkIdx.length)
  if (topkWeights.length !== slots) throw argumentError('topkWeights', `${slots} elements`, topkWeights.length)
}
