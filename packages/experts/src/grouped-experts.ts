import { argumentError, decode, type DType, encode, MoeEpError, requireTensor, type Tensor, traceHostWork } from '@moe-ep/core'
import { type Permuted, permute, unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import type { ExpertEngine, ExpertEngineFactory } from './expert-engine.js'
import type { ActivationFormat, Experts, ExpertsArguments, ExpertWeights } from './experts.js'
import { noWeightAndReduce } from './topk-weight-and-reduce.js'

const floatDtypes: readonly DType[] = ['f32', 'bf16', 'f16']

/**
 * Experts on the host, one after the other: rows are grouped by expert (permute), widened to f32, run by an engine, rounded to
 * their dtype, and brought back weighted and summed (unpermute).
 *
 * One engine is made for each pair of sizes, at first use. f32 weights are read where they lie; narrower ones are widened in
 * every call.
 */
export class GroupedExperts implements Experts {
  readonly activationFormat: ActivationFormat = 'standard'
  readonly weightAndReduce = noWeightAndReduce
  readonly #createEngine: ExpertEngineFactory
  readonly #engines = new Map<string, Promise<ExpertEngine>>()
  #closed = false

  constructor(createEngine: ExpertEngineFactory) {
    this.#createEngine = createEngine
  }

  /**
   * @throws ERR_MOE_EP_ARGUMENT for shapes and dtypes that do not fit; ERR_MOE_EP_UNSUPPORTED when the engine is not
   * installed; ERR_MOE_EP_ABORTED; ERR_MOE_EP_RELEASED after close; what the stream fails with.
   */
  async apply(args: ExpertsArguments): Promise<void> {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the experts were closed')
    const { output, hiddenStates, weights, topkIdx, topkWeights, expertMap, tokens, stream, signal } = args
    const sizes = checkProblem(args)
    const engine = await this.#engineFor(sizes)
    const permuted = permute(hiddenStates, {
      ...{ topkIdx, numLocalExperts: sizes.numLocalExperts, stream },
      // Host GEMMs take any number of rows: padding would only be copied about.
      alignment: 1,
      ...(expertMap !== undefined && { expertMap }),
      ...(tokens?.numTokensHost !== undefined && { expertNumTokensHost: tokens.numTokensHost }),
    })
    await stream.synchronize({ ...(signal !== undefined && { signal }) })
    const done = traceHostWork('experts.groupedGemm', stream, permuted.rows.byteLength * 2)
    await runExperts(engine, permuted, weights, signal)
    done()
    unpermuteAndReduce(permuted.rows, {
      ...{ topkIdx, topkWeights, inversePermutation: permuted.inversePermutation, out: output, stream },
      ...(expertMap !== undefined && { expertMap }),
    })
  }

  async close(): Promise<void> {
    this.#closed = true
    const engines = await Promise.allSettled(this.#engines.values())
    this.#engines.clear()
    for (const engine of engines) if (engine.status === 'fulfilled') await engine.value.close()
  }

  #engineFor({ hidden, intermediate }: Problem): Promise<ExpertEngine> {
    const key = `${hidden}x${intermediate}`
    let engine = this.#engines.get(key)
    if (engine === undefined) {
      engine = this.#createEngine({ hidden, intermediate })
      this.#engines.set(key, engine)
      // A failed start is not remembered: what was missing may be there next time.
      engine.catch(() => this.#engines.delete(key))
    }
    return engine
  }
}

interface Problem {
  readonly numLocalExperts: number
  readonly hidden: number
  readonly intermediate: number
}

function checkProblem({ output, hiddenStates, weights, topkIdx, topkWeights }: ExpertsArguments): Problem {
  requireTensor('hiddenStates', hiddenStates, { dtype: floatDtypes, shape: [null, null] })
  const [rows, hidden] = hiddenStates.shape as [number, number]
  requireTensor('output', output, { dtype: hiddenStates.dtype, shape: [rows, hidden] })
  requireTensor('w13', weights.w13, { dtype: floatDtypes, shape: [null, null, hidden] })
  const [numLocalExperts, gateAndUp] = weights.w13.shape as [number, number]
  if (gateAndUp % 2 !== 0) throw argumentError('w13', 'gate rows and as many up rows', weights.w13.toString())
  const intermediate = gateAndUp / 2
  requireTensor('w2', weights.w2, { dtype: weights.w13.dtype, shape: [numLocalExperts, hidden, intermediate] })
  requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [rows, null] })
  requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
  return { numLocalExperts, hidden, intermediate }
}

/** Runs every expert on its rows and puts the results in their place. */
async function runExperts(engine: ExpertEngine, permuted: Permuted, weights: ExpertWeights, signal?: AbortSignal): Promise<void> {
  const counts = permuted.expertNumTokens.data
  const starts = permuted.expertStart.data
  for (let expert = 0; expert < counts.length; expert++) {
    const count = Number(counts[expert])
    if (count === 0) continue
    if (signal?.aborted) throw new MoeEpError('ERR_MOE_EP_ABORTED', 'the experts were aborted', { cause: signal.reason })
    const begin = Number(starts[expert])
    const rows = permuted.rows.slice(begin, begin + count)
    const y = await engine.run(widen(rows), widen(weights.w13.slice(expert, expert + 1)), widen(weights.w2.slice(expert, expert + 1)))
    // In place: nobody reads the expert's input rows again.
    rows.data.set(encode(rows.dtype, y) as never)
  }
}

/** f32 values of a tensor; f32 tensors as they lie. */
function widen(tensor: Tensor): Float32Array {
  return tensor.dtype === 'f32' ? (tensor.data as Float32Array) : (decode(tensor.dtype, tensor.data) as Float32Array)
}
