import type { LayerOptions } from '../command/layer-options.js'
import type { ModelShape } from '../command/presets.js'

/** What a rank gets to know, through one environment variable. */
export interface RunSpec {
  readonly options: LayerOptions
  readonly shape: ModelShape
  readonly weights: string
  /** Folder where each rank leaves its result. */
  readonly results: string
}

export const runSpecVariable = 'MOE_LAYER_RUN'
