import type { OnProgress } from '../support/progress.js'
import { MoeWeightsFile, openMoeWeights } from './moe-weights-file.js'
import type { ReadOptions } from './safetensors-reader.js'

export { MoeWeightsFile, openMoeWeights }

/** One expert's weights widened to f32. */
export interface ExpertWeights {
  /** Gate rows, then up rows: [2I, K]. */
  readonly w13: Float32Array
  /** [K, I]. */
  readonly w2: Float32Array
}

/** The gate and some experts of one layer. */
export interface MoeWeights {
  readonly hidden: number
  readonly intermediate: number
  /** E: all routed experts of the layer, not only those read. */
  readonly numExperts: number
  /** [E, K]. */
  readonly gate: Float32Array
  /** [E]: present when the file has one. */
  readonly correctionBias?: Float32Array
  /** The experts asked for, by id. */
  readonly experts: ReadonlyMap<number, ExpertWeights>
  /** Present when the file has a shared expert and it was asked for. */
  readonly sharedExpert?: ExpertWeights
}

/** Which part of a file to load. */
export interface LoadMoeWeightsOptions extends ReadOptions {
  /** Ids of the experts to read; none is fine. */
  readonly experts: readonly number[]
  /** Whether to read the shared expert, if there is one. @default true */
  readonly sharedExpert?: boolean
  /** @default the first one that has experts */
  readonly layer?: number
  /** Hears the experts read so far. */
  readonly onProgress?: OnProgress
}

/**
 * The gate and the named experts of one layer, read from a safetensors file; no other expert's bytes are touched.
 *
 * @throws ERR_MOE_EP_FILE_FORMAT when a tensor is missing or has an unexpected shape, naming it;
 * ERR_MOE_EP_ARGUMENT for an expert that the layer does not have; else as {@link openMoeWeights}.
 */
export async function loadMoeWeights(path: string, options: LoadMoeWeightsOptions): Promise<MoeWeights> {
  const { experts: ids, sharedExpert = true, layer, signal, onProgress } = options
  const file = await openMoeWeights(path, { layer })
  try {
    const read = signal === undefined ? {} : { signal }
    const { hidden, intermediate, numExperts } = file
    for (const id of ids) file.checkExpert(id)
    const gate = await file.readGate(read)
    const correctionBias = await file.readCorrectionBias(read)
    const experts = new Map<number, ExpertWeights>()
    onProgress?.({ done: 0, total: ids.length })
    for (const id of ids) {
      experts.set(id, await file.readExpert(id, read))
      onProgress?.({ done: experts.size, total: ids.length })
    }
    const shared = sharedExpert ? await file.readSharedExpert(read) : undefined
    return {
      ...{ hidden, intermediate, numExperts, gate, experts },
      ...(correctionBias && { correctionBias }),
      ...(shared && { sharedExpert: shared }),
    }
  } finally {
    await file.close()
  }
}
