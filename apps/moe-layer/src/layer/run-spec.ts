import type { LayerOptions } from '../command/layer-options.js'
import type { Gate } from '../gates/gate.js'
import type { ModelShape } from '../presets/model-preset.js'

/** What a rank gets to know, through one environment variable. */
export interface RunSpec {
  readonly options: LayerOptions
  readonly shape: ModelShape
  /** @default softmax, renormalised */
  readonly gate?: Gate
  /** Number of the layer in the weights file. @default the file's first */
  readonly layer?: number
  readonly weights: string
  /** Folder where each rank leaves its result. */
  readonly results: string
}

export const runSpecVariable = 'MOE_LAYER_RUN'
