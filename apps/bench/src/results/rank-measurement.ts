import type { OperationName } from '../command/operation-names.js'

/** What one rank measured of one operation; it travels as JSON. */
export interface RankMeasurement {
  readonly name: OperationName
  readonly rule: string
  readonly bytes: number
  readonly wireBytes?: number
  readonly logicalBytes?: number
  /** Microseconds of each iteration. */
  readonly samples: readonly number[]
  readonly ceilings: readonly { readonly name: string; readonly samples: readonly number[] }[]
  /** Of an empty launch, where that is what the samples are compared with. */
  readonly floor?: readonly number[]
  /** What was wrong with the results. */
  readonly error?: string
}

export interface RankSuccess {
  readonly rank: number
  /** Name of its GPU. */
  readonly gpu?: string
  readonly measurements: readonly RankMeasurement[]
}

export interface RankFailure {
  readonly rank: number
  readonly error: { readonly code: string; readonly message: string }
}
