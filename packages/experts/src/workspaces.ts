import { byteLengthOf, type Device, type DType, requireTensor, Tensor } from '@moe-ep/core'

/** A tensor that is still to be given memory. */
export interface TensorSpec {
  readonly dtype: DType
  readonly shape: readonly number[]
}

/** What decides how much scratch experts need. */
export interface ExpertsProblem {
  /** Rows M; in the batched format the rows that every expert has. */
  readonly numTokens: number
  /** K. */
  readonly hidden: number
  /** I. */
  readonly intermediate: number
  readonly topk: number
  readonly numLocalExperts: number
  readonly inputDtype: DType
  readonly outputDtype: DType
  readonly weightDtype: DType
  /** Scales of a row; 0 for rows without. */
  readonly scaleColumns: number
  /** Rows of each local expert, where the host knows them: scratch is then exact instead of a bound. */
  readonly numTokensHost?: Int32Array
}

/**
 * Scratch of one call. `workspace13` and `output` may be views of the same memory: experts have read everything in `workspace13`
 * when they write the first element of `output`. `workspace2` lies apart from both. Sizes may be 0.
 */
export interface WorkspaceShapes {
  readonly workspace13: TensorSpec
  readonly workspace2: TensorSpec
  /** Exactly what `apply` takes as `output`. */
  readonly output: TensorSpec
}

/** Scratch as experts are given it: as many bytes as the shapes ask for, or more. Its contents are garbage. */
export interface Workspaces {
  readonly workspace13: Tensor
  readonly workspace2: Tensor
}

/** Starts of tensors in a workspace: any element size divides it, and so does a cache line. */
const alignment = 64

/** Bytes of a spec's elements. */
export function bytesOfSpec({ dtype, shape }: TensorSpec): number {
  return byteLengthOf(
    dtype,
    shape.reduce((all, size) => all * size, 1),
  )
}

/** A workspace of bytes that holds all these tensors next to one another. */
export function workspaceOf(specs: Readonly<Record<string, TensorSpec>>): TensorSpec {
  const bytes = Object.values(specs).reduce((sum, spec) => sum + align(bytesOfSpec(spec)), 0)
  return { dtype: 'u8', shape: [bytes] }
}

/**
 * The tensors of `specs` as views of a workspace, in order.
 * @throws ERR_MOE_EP_ARGUMENT when the workspace is too small.
 */
export function carve<Name extends string>(
  argument: string,
  workspace: Tensor,
  specs: Readonly<Record<Name, TensorSpec>>,
): Record<Name, Tensor> {
  requireTensor(argument, workspace)
  const { memory } = workspace
  let { byteOffset } = workspace
  const views: [string, Tensor][] = []
  for (const [name, spec] of Object.entries<TensorSpec>(specs)) {
    views.push([name, new Tensor({ memory, byteOffset, ...spec })])
    byteOffset += align(bytesOfSpec(spec))
  }
  return Object.fromEntries(views) as Record<Name, Tensor>
}

/** New memory for a call that was given none. */
export function allocateWorkspaces({ workspace13, workspace2 }: WorkspaceShapes, device: Device): Workspaces {
  return {
    workspace13: Tensor.zeros(workspace13.shape, workspace13.dtype, device),
    workspace2: Tensor.zeros(workspace2.shape, workspace2.dtype, device),
  }
}

function align(bytes: number): number {
  return Math.ceil(bytes / alignment) * alignment
}
