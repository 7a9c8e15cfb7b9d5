import { MoeEpError, type Stream, type Tensor } from '@moe-ep/core'
import { dequantizePerTokenGroup } from '@moe-ep/quant'
import type { ExpertEngine } from './expert-engine.js'
import type { ExpertWeights } from './experts.js'
import { narrow, widen } from './host-rows.js'
import type { ExpertsProblem, TensorSpec } from './workspaces.js'

/** f32 memory for one expert at a time. */
export type EngineScratch = 'x' | 'y' | 'w13' | 'w2'

/** Scratch for experts of up to `maxRows` rows; nothing is kept for what can be read where it lies. */
export function engineScratch(problem: ExpertsProblem, maxRows: number): Record<EngineScratch, TensorSpec> {
  const { hidden, intermediate, inputDtype, weightDtype } = problem
  const f32 = (needed: boolean, rows: number, columns: number): TensorSpec => {
    return { dtype: 'f32', shape: [needed ? rows : 0, columns] }
  }
  return {
    x: f32(inputDtype !== 'f32', maxRows, hidden),
    y: f32(true, maxRows, hidden),
    w13: f32(weightDtype !== 'f32', 2 * intermediate, hidden),
    w2: f32(weightDtype !== 'f32', hidden, intermediate),
  }
}

/** What one expert computes. */
export interface ExpertRun {
  readonly expert: number
  /** [m, K], m of 1 or more. */
  readonly rows: Tensor
  /** Of fp8 rows: f32 [m, G], or packed; any strides. */
  readonly scales: Tensor | undefined
  readonly groupSize: number
  /** [m, K]; may be `rows` itself. */
  readonly target: Tensor
  readonly weights: ExpertWeights
  readonly scratch: Record<EngineScratch, Tensor>
  readonly stream: Stream
  readonly signal: AbortSignal | undefined
}

/** One expert on rows that the stream has finished: f32 in the engine, rounded to the dtype of the target. */
export async function runExpert(engine: ExpertEngine, run: ExpertRun): Promise<void> {
  const { expert, rows, weights, scratch, target, signal } = run
  if (signal?.aborted) throw new MoeEpError('ERR_MOE_EP_ABORTED', 'the experts were aborted', { cause: signal.reason })
  const x = await valuesOf(run)
  const w13 = widen(weights.w13.slice(expert, expert + 1), scratch.w13)
  const w2 = widen(weights.w2.slice(expert, expert + 1), scratch.w2)
  const out = (scratch.y.data as Float32Array).subarray(0, rows.numel)
  narrow(await engine.run(x, w13, w2, { out }), target)
}

/** Rows as f32. Quantised ones are widened on the stream, one expert at a time: all at once would be four times the bytes. */
async function valuesOf({ rows, scales, groupSize, scratch, stream, signal }: ExpertRun): Promise<Float32Array> {
  if (scales === undefined) return widen(rows, scratch.x)
  const out = scratch.x.slice(0, rows.shape[0]!)
  dequantizePerTokenGroup(rows, scales, { groupSize, dtype: 'f32', out, stream })
  await stream.synchronize({ ...(signal !== undefined && { signal }) })
  return out.data as Float32Array
}
