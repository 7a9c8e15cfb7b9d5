import { argumentError, MoeEpError, requireInteger, requireTensor, Tensor, traceHostWork } from '@moe-ep/core'
import type { ScaleFormat } from '@moe-ep/quant'
import { checkExperts, defaultGroupSize } from './check-experts.js'
import { EngineCache } from './engine-cache.js'
import type { ExpertEngineFactory } from './expert-engine.js'
import type { ActivationFormat, Experts, ExpertsArguments, QuantScheme } from './experts.js'
import { engineScratch, runExpert } from './run-expert.js'
import { delegateWeightAndReduce } from './topk-weight-and-reduce.js'
import { allocateWorkspaces, carve, type ExpertsProblem, workspaceOf, type WorkspaceShapes } from './workspaces.js'

/** What batched experts are built for. */
export interface BatchedExpertsOptions {
  /** Most tokens that one rank sends in one call. */
  readonly maxNumTokens: number
  /** Ranks that send. */
  readonly numDispatchers: number
}

/**
 * Experts on the host for rows that lie by expert already, [E_l, rows, K] with a count for each expert. Rows beyond a count are
 * neither read nor written. Weights and sums over slots are left to finalize.
 */
export class BatchedExperts implements Experts {
  readonly activationFormat: ActivationFormat = 'batchedExperts'
  readonly weightAndReduce = delegateWeightAndReduce
  readonly deviceKinds: readonly string[] = ['cpu']
  readonly quantSchemes: readonly QuantScheme[] = ['none', 'fp8-block', 'fp8-token', 'fp8-tensor']
  /** Scales are read where they lie, so that none of them is better. */
  readonly scaleFormats: readonly ScaleFormat[] = ['f32', 'ue8m0', 'ue8m0-packed']
  readonly maxNumTokens: number
  readonly numDispatchers: number
  readonly #engines: EngineCache

  /** @throws ERR_MOE_EP_ARGUMENT without both sizes. */
  constructor(createEngine: ExpertEngineFactory, { maxNumTokens, numDispatchers }: BatchedExpertsOptions) {
    requireInteger('maxNumTokens', maxNumTokens, 1)
    requireInteger('numDispatchers', numDispatchers, 1)
    this.maxNumTokens = maxNumTokens
    this.numDispatchers = numDispatchers
    this.#engines = new EngineCache(createEngine)
  }

  /** Scratch of one call: the engine's f32 rows and weights. */
  workspaceShapes(problem: ExpertsProblem): WorkspaceShapes {
    const { numLocalExperts, numTokens, hidden, outputDtype } = problem
    return {
      // Apart from the output: an expert's result is written while the next one still needs scratch.
      workspace13: { dtype: 'u8', shape: [0] },
      workspace2: workspaceOf(engineScratch(problem, numTokens)),
      output: { dtype: outputDtype, shape: [numLocalExperts, numTokens, hidden] },
    }
  }

  /**
   * @throws ERR_MOE_EP_ARGUMENT for shapes and dtypes that do not fit, or counts that are missing or too large; ERR_MOE_EP_UNSUPPORTED
   * when the engine is not installed; ERR_MOE_EP_ABORTED; ERR_MOE_EP_RELEASED after close; what the stream fails with.
   */
  async apply(args: ExpertsArguments): Promise<void> {
    this.#engines.requireOpen()
    const problem = this.#check(args)
    const engine = await this.#engines.engineFor(problem)
    const { output, hiddenStates, scales, tokens, stream, signal } = args
    const given = args.workspaces ?? allocateWorkspaces(this.workspaceShapes(problem), output.device)
    const scratch = carve('workspace2', given.workspace2, engineScratch(problem, problem.numTokens))
    await stream.synchronize({ ...(signal !== undefined && { signal }) })
    const done = traceHostWork('experts.batchedGemm', stream, undefined)
    const counts = Array.from(tokens!.numTokensHost ?? tokens!.numTokens.data, Number)
    for (const [expert, count] of counts.entries()) {
      if (count < 0 || count > problem.numTokens)
        throw argumentError('tokens', `counts of 0 to ${problem.numTokens}`, count)
      if (count === 0) continue
      await runExpert(engine, {
        ...{ expert, rows: rowsOfExpert(hiddenStates, expert, count), target: rowsOfExpert(output, expert, count) },
        ...{ scales: scales && rowsOfExpert(scales, expert, count), groupSize: args.groupSize ?? defaultGroupSize },
        ...{ weights: args.weights, scratch, stream, signal },
      })
    }
    done()
  }

  async close(): Promise<void> {
    await this.#engines.close()
  }

  #check(args: ExpertsArguments): ExpertsProblem {
    const problem = checkExperts(args, 3)
    const most = this.maxNumTokens * this.numDispatchers
    if (problem.numTokens > most)
      throw argumentError('hiddenStates', `at most ${most} rows of an expert`, args.hiddenStates.toString())
    const { tokens, expertMap } = args
    if (tokens === undefined) throw argumentError('tokens', 'rows of each expert', tokens)
    requireTensor('tokens', tokens.numTokens, { dtype: 'i32', shape: [problem.numLocalExperts] })
    if (expertMap !== undefined)
      throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'batched experts take no expertMap: rows lie by expert already')
    return problem
  }
}

/** The first rows of an expert in a batched tensor [E_l, rows, columns] of any strides: scales of neighbouring rows may lie together. */
function rowsOfExpert(batched: Tensor, expert: number, count: number): Tensor {
  const { memory, dtype, shape, strides, byteOffset } = batched.slice(expert, expert + 1)
  return new Tensor({ memory, dtype, byteOffset, shape: [count, shape[2]!], strides: strides.slice(1) })
}
