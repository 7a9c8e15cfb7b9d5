import { copyTensor, Graph, Tensor } from '@moe-ep/core'
import { type ExpertsArguments, expertsProblem, type Workspaces } from '@moe-ep/experts'
import { type Prepared, WorkspaceManager } from '@moe-ep/modular-kernel'
import type { LayerInputs, LayerPass, LayerPassParts } from './layer-pass.js'
import type { StageRecorder } from './stage-recorder.js'

/** What was recorded, and the memory that it reads and writes. */
interface Recorded {
  readonly dispatch: Graph
  readonly combine: Graph
  readonly inputs: LayerInputs
  readonly prepared: Prepared
  readonly expertOutput: Tensor
  readonly workspaces: Workspaces | undefined
  readonly output: Tensor
}

/**
 * The layer with dispatch and combine as graphs, recorded in the first pass and replayed in every one. Experts run between the two, for
 * those of the host cannot be recorded.
 */
export function graphPass(parts: LayerPassParts, recorder: StageRecorder): LayerPass {
  const { family, weights, stream, meet } = parts
  let recorded: Recorded | undefined
  return {
    async run(inputs) {
      if (recorded === undefined) {
        recorded = await record(parts, recorder, inputs)
        // To make a graph a GPU's driver may wait for kernels that run, and those of another rank that shares it would wait for this one.
        await meet()
      }
      const { dispatch, combine, prepared, expertOutput, workspaces, output } = recorded
      for (const name of ['hiddenStates', 'topkIdx', 'topkWeights'] as const) {
        const [from, to] = [inputs[name], recorded.inputs[name]]
        if (from !== to) copyTensor(from, to, { stream })
      }
      dispatch.launch(stream)
      await family.experts.apply({
        ...rowsOf(prepared),
        ...{ output: expertOutput, weights, stream, ...(workspaces !== undefined && { workspaces }) },
      })
      combine.launch(stream)
      return output
    },
    close() {
      recorded?.dispatch.close()
      recorded?.combine.close()
    },
  }
}

/** What experts are told of the rows. */
function rowsOf(prepared: Prepared): Omit<ExpertsArguments, 'output' | 'weights' | 'stream'> {
  const { hiddenStates, scales, groupSize, topkIdx, topkWeights, tokens } = prepared
  return {
    ...{ hiddenStates, topkIdx, topkWeights },
    ...(scales !== undefined && { scales }),
    ...(groupSize !== undefined && { groupSize }),
    ...(tokens !== undefined && { tokens }),
  }
}

async function record(
  { family, weights, numExperts, stream }: LayerPassParts,
  recorder: StageRecorder,
  inputs: LayerInputs,
): Promise<Recorded> {
  const { prepareAndFinalize, experts } = family
  prepareAndFinalize.postInitSetup?.(experts)
  /** What the call enqueues before it returns; what it gives is known when the capture has ended. */
  const capture = async <Result>(call: () => Promise<Result>): Promise<[Graph, Result]> => {
    let running: Promise<Result> | undefined
    const graph = recorder.keep(() =>
      Graph.capture(stream, () => {
        running = call()
      }),
    )
    return [graph, await running!]
  }
  const [dispatch, prepared] = await capture(() => prepareAndFinalize.prepare({ ...inputs, numExperts, stream }))
  const { dtype, shape, device } = inputs.hiddenStates
  const shapes = experts.workspaceShapes?.(expertsProblem({ ...rowsOf(prepared), weights }, dtype))
  const scratch = new WorkspaceManager().enter({ device, microBatch: 0, stream })
  const taken = shapes && scratch.takeAll(shapes)
  const expertOutput = taken?.output ?? Tensor.empty(prepared.hiddenStates.shape, dtype, device)
  const output = Tensor.empty(shape, dtype, device)
  const { topkIdx, topkWeights } = prepared
  const [combine] = await capture(() =>
    prepareAndFinalize.finalize({
      ...{ output, expertOutput, topkIdx, topkWeights, weightAndReduce: experts.weightAndReduce, stream },
    }),
  )
  return { dispatch, combine, inputs, prepared, expertOutput, workspaces: taken, output }
}
