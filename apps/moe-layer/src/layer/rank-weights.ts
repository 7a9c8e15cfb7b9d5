import { type Device, Tensor } from '@moe-ep/core'
import type { ExpertWeights as StackedExperts } from '@moe-ep/experts'
import type { ExpertRange } from '../routing/placement.js'
import { type ExpertWeights, openMoeWeights } from '../weights/moe-weights.js'

/** What one rank holds of a layer, all f32. */
export interface RankWeights {
  /** [E, K]. */
  readonly gate: Float32Array
  /** [E]. */
  readonly correctionBias: Float32Array | undefined
  readonly sharedExpert: ExpertWeights | undefined
  /** This rank's experts behind one another, as grouped experts read them. */
  readonly experts: StackedExperts
}

/** Where the weights lie, and which of them are wanted. */
export interface RankWeightsOptions {
  readonly path: string
  readonly layer: number | undefined
  readonly range: ExpertRange
  readonly device: Device
}

/** Reads a rank's weights straight to where they are used: in whole they exist once. */
export async function loadRankWeights({ path, layer, range, device }: RankWeightsOptions): Promise<RankWeights> {
  const file = await openMoeWeights(path, { layer })
  try {
    const { hidden, intermediate } = file
    const numExperts = range.end - range.begin
    const w13 = Tensor.zeros([numExperts, 2 * intermediate, hidden], 'f32', device)
    const w2 = Tensor.zeros([numExperts, hidden, intermediate], 'f32', device)
    const valuesOf = (stack: Tensor, place: number): Float32Array => stack.slice(place, place + 1).data as Float32Array
    for (let place = 0; place < numExperts; place++) {
      await file.readExpert(range.begin + place, { into: { w13: valuesOf(w13, place), w2: valuesOf(w2, place) } })
    }
    return {
      gate: await file.readGate(),
      correctionBias: await file.readCorrectionBias(),
      sharedExpert: await file.readSharedExpert(),
      experts: { w13, w2 },
    }
  } finally {
    await file.close()
  }
}
