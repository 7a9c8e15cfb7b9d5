import { reference } from '../src/index.js'
import { type Input, resultsOf } from './world.js'

export const sizes = { hidden: 32, maxTokensPerRank: 4, maxTopk: 2 }
export const shape = { numTokens: [3, 0, 4], hidden: 32, topk: 2, numExperts: 5, seed: 1 }
export const bf16 = { numExperts: shape.numExperts, useFp8: false }

/** Rows that each expert of each rank gets of these inputs, what it answers, and what comes home. */
export function expected(inputs: readonly Input[], numExperts: number, hidden: number, weighted = false) {
  const counts = reference.dispatch(inputs, numExperts).map((experts) => experts.map((rows) => rows.length))
  const results = resultsOf(inputs, numExperts)
  return { counts, results, combined: reference.combine(inputs, results, { numExperts, hidden, weighted }) }
}
