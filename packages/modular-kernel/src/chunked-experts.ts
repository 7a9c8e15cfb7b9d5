import { type DType, type Stream, Tensor } from '@moe-ep/core'
import { countExpertNumTokens } from '@moe-ep/deepgemm-permute'
import {
  type Experts,
  type ExpertsArguments,
  expertsProblem,
  type ExpertTokens,
  type WorkspaceShapes,
} from '@moe-ep/experts'
import type { Prepared } from './prepare-and-finalize.js'
import type { WorkspaceLease } from './workspace-manager.js'

/** One call of the experts step. */
export interface ExpertsStep {
  readonly experts: Experts
  readonly prepared: Prepared
  readonly weights: ExpertsArguments['weights']
  readonly outputDtype: DType
  /** Absent: the experts' default. */
  readonly activation: ExpertsArguments['activation']
  /** Most rows of one call of the experts; batched rows are never cut. */
  readonly maxRowsPerChunk: number
  readonly workspace: WorkspaceLease
  readonly stream: Stream
  readonly signal: AbortSignal | undefined
}

/** Runs the experts on all rows, in chunks where there are too many, and gives their output: valid until the workspace is left. */
export async function runExperts(step: ExpertsStep): Promise<Tensor> {
  const { experts, prepared, outputDtype, workspace, maxRowsPerChunk } = step
  const { hiddenStates } = prepared
  const rows = hiddenStates.shape[0]!
  const { device } = hiddenStates
  // Nothing arrived: nothing to compute, but finalize is still due, for the others wait for this rank.
  if (rows === 0) return Tensor.zeros(hiddenStates.shape, outputDtype, device)
  const standard = prepared.hiddenStates.shape.length === 2
  if (!standard || rows <= maxRowsPerChunk) {
    const shapes = experts.workspaceShapes?.(expertsProblem(argumentsOf(step, prepared), outputDtype))
    if (shapes === undefined) {
      const output = Tensor.zeros(hiddenStates.shape, outputDtype, device)
      await experts.apply({ ...argumentsOf(step, prepared), output })
      return output
    }
    const direct = directOutput(step, shapes)
    const { output, ...workspaces } =
      direct === undefined ? workspace.takeAll(shapes) : { ...workspace.takeScratch(shapes), output: direct }
    await experts.apply({ ...argumentsOf(step, prepared), output, workspaces })
    return output
  }
  const whole = experts.workspaceShapes?.(expertsProblem(argumentsOf(step, prepared), outputDtype)).output
  const output = workspace.takeOutput(whole ?? { dtype: outputDtype, shape: hiddenStates.shape })
  // Experts may leave several rows for each row that they get.
  const outputRows = output.shape[0]! / rows
  for (let begin = 0; begin < rows; begin += maxRowsPerChunk) {
    const end = Math.min(rows, begin + maxRowsPerChunk)
    const chunk = argumentsOf(step, await chunkOf(step, begin, end))
    const shapes = experts.workspaceShapes?.(expertsProblem(chunk, outputDtype))
    await experts.apply({
      ...{ ...chunk, output: output.slice(begin * outputRows, end * outputRows) },
      ...(shapes !== undefined && { workspaces: workspace.takeScratch(shapes) }),
    })
  }
  return output
}

/** Memory that finalize reads without a copy, where these experts may write there and leave what it asks for. */
function directOutput({ experts, prepared }: ExpertsStep, { output }: WorkspaceShapes): Tensor | undefined {
  const { expertOutput } = prepared
  if (expertOutput === undefined || experts.outputMayReplaceInput !== true) return undefined
  const fits = output.dtype === expertOutput.dtype && output.shape.join() === expertOutput.shape.join()
  return fits ? expertOutput : undefined
}

function argumentsOf(
  { weights, activation, stream, signal }: ExpertsStep,
  prepared: Prepared,
): Omit<ExpertsArguments, 'output'> {
  const { hiddenStates, scales, groupSize, topkIdx, topkWeights, tokens } = prepared
  return {
    ...{ hiddenStates, topkIdx, topkWeights, weights, stream },
    ...(scales !== undefined && { scales }),
    ...(groupSize !== undefined && { groupSize }),
    ...(tokens !== undefined && { tokens }),
    ...(activation !== undefined && { activation }),
    ...(signal !== undefined && { signal }),
  }
}

/** Rows [begin, end) with counts of their own. */
async function chunkOf(step: ExpertsStep, begin: number, end: number): Promise<Prepared> {
  const { prepared } = step
  const topkIdx = prepared.topkIdx.slice(begin, end)
  return {
    ...{ ...prepared, topkIdx, topkWeights: prepared.topkWeights.slice(begin, end) },
    hiddenStates: prepared.hiddenStates.slice(begin, end),
    scales: prepared.scales?.slice(begin, end),
    tokens: prepared.tokens && (await recount(step, prepared.tokens, topkIdx)),
  }
}

/** Counts of a chunk; on the host, too, if those of the whole were. */
async function recount({ stream, signal }: ExpertsStep, whole: ExpertTokens, topkIdx: Tensor): Promise<ExpertTokens> {
  const numLocalExperts = whole.numTokens.numel
  if (numLocalExperts === 0) return whole
  const numTokens = countExpertNumTokens(topkIdx, { numLocalExperts, stream })
  if (whole.numTokensHost === undefined) return { numTokens, numTokensHost: undefined }
  await stream.synchronize({ ...(signal !== undefined && { signal }) })
  return { numTokens, numTokensHost: Int32Array.from(numTokens.data as Int32Array) }
}
