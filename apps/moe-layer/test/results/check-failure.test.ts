import { expect, it } from 'vitest'
import { checkFailureOf } from '../../src/results/check-failure.js'
import type { LayerResult } from '../../src/results/layer-result.js'

const result = (part: Partial<LayerResult>): LayerResult =>
  ({ ok: false, deterministic: true, maxRelError: 1e-3, tolerance: 2e-2, ...part }) as LayerResult

it('is nothing for a result that is ok', () => {
  expect(checkFailureOf(result({ ok: true }))).toBeUndefined()
})

it.each<[Partial<LayerResult>, string[]]>([
  [{ maxRelError: 0.066123 }, ['is 6.61e-2, at most 0.02']],
  [{ maxRelError: Number.MAX_VALUE }, ['is 1.80e+308, at most 0.02']],
  [{ deterministic: false }, ['different bits']],
  [{ maxRelError: 0.5, deterministic: false }, ['is 5.00e-1', 'different bits']],
])('says what is wrong with %j', (part, words) => {
  const failure = checkFailureOf(result(part))
  expect(failure?.code).toBe('ERR_MOE_EP_CHECK_FAILED')
  for (const word of words) expect(failure?.message).toContain(word)
})
