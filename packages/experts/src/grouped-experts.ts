import { argumentError, requireTensor, Tensor, traceHostWork } from '@moe-ep/core'
import { permute, unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import { checkExperts, defaultGroupSize } from './check-experts.js'
import { EngineCache } from './engine-cache.js'
import type { ExpertEngine, ExpertEngineFactory } from './expert-engine.js'
import type { ActivationFormat, Experts, ExpertsArguments, QuantScheme } from './experts.js'
import { engineScratch, runExpert } from './run-expert.js'
import { noWeightAndReduce } from './topk-weight-and-reduce.js'
import {
  allocateWorkspaces,
  carve,
  type ExpertsProblem,
  type TensorSpec,
  workspaceOf,
  type WorkspaceShapes,
} from './workspaces.js'

/**
 * Experts on the host, one after the other: rows are grouped by expert (permute), widened to f32, run by an engine, rounded to
 * the dtype of the output, and brought back weighted and summed (unpermute). fp8 rows with scales are dequantised to f32.
 *
 * One engine is made for each pair of sizes, at first use. f32 weights are read where they lie; narrower ones are widened in
 * every call.
 */
export class GroupedExperts implements Experts {
  readonly activationFormat: ActivationFormat = 'standard'
  readonly weightAndReduce = noWeightAndReduce
  readonly deviceKinds: readonly string[] = ['cpu']
  readonly quantSchemes: readonly QuantScheme[] = ['none', 'fp8-block', 'fp8-token', 'fp8-tensor']
  readonly outputMayReplaceInput = true
  readonly #engines: EngineCache

  constructor(createEngine: ExpertEngineFactory) {
    this.#engines = new EngineCache(createEngine)
  }

  /** Scratch of one call. `workspace13`: the engine's f32 rows and weights, and quantised rows. `workspace2`: grouped results. */
  workspaceShapes(problem: ExpertsProblem): WorkspaceShapes {
    const { workspace13, workspace2 } = layoutOf(problem)
    const output = { dtype: problem.outputDtype, shape: [problem.numTokens, problem.hidden] }
    return { workspace13: workspaceOf(workspace13), workspace2: workspaceOf(workspace2), output }
  }

  /**
   * @throws ERR_MOE_EP_ARGUMENT for shapes and dtypes that do not fit; ERR_MOE_EP_UNSUPPORTED when the engine is not
   * installed; ERR_MOE_EP_ABORTED; ERR_MOE_EP_RELEASED after close; what the stream fails with.
   */
  async apply(args: ExpertsArguments): Promise<void> {
    this.#engines.requireOpen()
    const problem = check(args)
    if (problem.numLocalExperts === 0) return writeZeros(args)
    const engine = await this.#engines.engineFor(problem)
    const { output, hiddenStates, topkIdx, topkWeights, scales, expertMap, tokens, stream, signal } = args
    const layout = layoutOf(problem)
    const given = args.workspaces ?? allocateWorkspaces(this.workspaceShapes(problem), output.device)
    const scratch = carve('workspace13', given.workspace13, layout.workspace13)
    const { results, inversePermutation, expertIds } = carve('workspace2', given.workspace2, layout.workspace2)
    const permuted = permute(hiddenStates, {
      ...{ topkIdx, numLocalExperts: problem.numLocalExperts, stream },
      // Host GEMMs take any number of rows: padding would only be copied about.
      alignment: 1,
      ...(expertMap !== undefined && { expertMap }),
      ...(tokens?.numTokensHost !== undefined && { expertNumTokensHost: tokens.numTokensHost }),
      ...(scales !== undefined && { scales }),
      out: {
        rows: scales === undefined ? results : scratch.rows,
        ...(scales !== undefined && { scales: scratch.scales }),
        ...{ expertIds, inversePermutation },
      },
    })
    await stream.synchronize({ ...(signal !== undefined && { signal }) })
    const done = traceHostWork('experts.groupedGemm', stream, permuted.rows.byteLength + results.byteLength)
    const ranges = rangesOf(permuted.expertStart, permuted.expertNumTokens)
    await runAll(engine, ranges, ({ expert, begin, end }) => ({
      ...{ expert, rows: permuted.rows.slice(begin, end), scales: permuted.scales?.slice(begin, end) },
      ...{ groupSize: args.groupSize ?? defaultGroupSize, weights: args.weights, scratch, stream, signal },
      // In place, where rows are not quantised: nobody reads the expert's input rows again.
      target: results.slice(begin, end),
    }))
    done()
    unpermuteAndReduce(results, {
      ...{ topkIdx, topkWeights, inversePermutation, out: output, stream },
      ...(expertMap !== undefined && { expertMap }),
    })
  }

  async close(): Promise<void> {
    await this.#engines.close()
  }
}

function check(args: ExpertsArguments): ExpertsProblem {
  const { hiddenStates, topkIdx, topkWeights, tokens } = args
  const rows = hiddenStates?.shape?.[0] ?? null
  requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [rows, null] })
  requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
  const problem = checkExperts(args, 2)
  const counts = tokens?.numTokensHost
  if (counts !== undefined && counts.length !== problem.numLocalExperts) {
    throw argumentError('expertNumTokensHost', `${problem.numLocalExperts} counts`, `${counts.length} counts`)
  }
  return problem
}

type Layout = {
  readonly workspace13: Record<'x' | 'y' | 'w13' | 'w2' | 'rows' | 'scales', TensorSpec>
  readonly workspace2: Record<'results' | 'inversePermutation' | 'expertIds', TensorSpec>
}

/** What lies where. Everything in workspace13 is dead once the last expert has run, so the output may take its place. */
function layoutOf(problem: ExpertsProblem): Layout {
  const { numTokens, topk, hidden, scaleColumns, numTokensHost } = problem
  const counts = Array.from(numTokensHost ?? [numTokens * topk])
  const rows = counts.reduce((sum, count) => sum + count, 0)
  const quantized = scaleColumns > 0
  return {
    workspace13: {
      ...engineScratch(problem, Math.max(0, ...counts)),
      rows: { dtype: problem.inputDtype, shape: [quantized ? rows : 0, hidden] },
      scales: { dtype: 'f32', shape: [quantized ? rows : 0, scaleColumns] },
    },
    workspace2: {
      results: { dtype: problem.outputDtype, shape: [rows, hidden] },
      inversePermutation: { dtype: 'i32', shape: [numTokens, topk] },
      expertIds: { dtype: 'i32', shape: [rows] },
    },
  }
}

/** A rank without experts of its own: nothing is summed. */
function writeZeros({ output, topkIdx, topkWeights, stream }: ExpertsArguments): void {
  const none = Tensor.from(new Int32Array(topkIdx.numel).fill(-1), topkIdx.shape, 'i32', output.device)
  const rows = Tensor.zeros([0, output.shape[1]!], output.dtype, output.device)
  unpermuteAndReduce(rows, { topkIdx: none, topkWeights, inversePermutation: none, out: output, stream })
}

interface RowRange {
  readonly expert: number
  readonly begin: number
  readonly end: number
}

/** Rows of every expert that has some. */
function rangesOf(starts: Tensor, counts: Tensor): RowRange[] {
  const begins = Array.from(starts.data, Number)
  return Array.from(counts.data, Number)
    .map((count, expert) => ({ expert, begin: begins[expert]!, end: begins[expert]! + count }))
    .filter(({ begin, end }) => end > begin)
}

async function runAll(
  engine: ExpertEngine,
  ranges: readonly RowRange[],
  runOf: (range: RowRange) => Parameters<typeof runExpert>[1],
): Promise<void> {
  for (const range of ranges) await runExpert(engine, runOf(range))
}
