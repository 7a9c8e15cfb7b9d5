import { argumentError, requireInteger, type Tensor } from '@moe-ep/core'

/** Rows and columns of a weight that share a scale when nothing else is asked for. */
export const defaultBlockShape = [128, 128] as const

/**
 * The shape of the scales of a weight [N, K] or [E, N, K]: [ceil(N / rows), ceil(K / columns)], with E in front.
 * @throws ERR_MOE_EP_ARGUMENT for other shapes, and for blocks that are not two integers, 1 or more.
 */
export function blockScaleShape(argument: string, weight: Tensor, blockShape: readonly [number, number]): number[] {
  const { shape } = weight
  if (shape.length !== 2 && shape.length !== 3)
    throw argumentError(argument, 'shape [N, K] or [E, N, K]', weight.toString())
  requireInteger('blockShape[0]', blockShape[0], 1)
  requireInteger('blockShape[1]', blockShape[1], 1)
  const [rows, columns] = shape.slice(-2) as [number, number]
  return [...shape.slice(0, -2), Math.ceil(rows / blockShape[0]), Math.ceil(columns / blockShape[1])]
}
