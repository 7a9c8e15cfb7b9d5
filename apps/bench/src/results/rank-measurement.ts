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
  /** What was wrong with the results. */
  readonly error?: string
}

export interface RankSuccess {
  readonly rank: number
  readonly measurements: readonly RankMeasurement[]
}

export interface RankFailure {
  readonly rank: number
  readonly error: { readonly code: string; readonly message: string }
}
