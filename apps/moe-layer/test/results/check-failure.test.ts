import { expect, it } from 'vitest'
import { checkFailureOf } from '../../src/results/check-failure.js'
import type { LayerResult } from '../../src/results/layer-result.js'

const result = (part: Partial<LayerResult>): LayerResult =>
  ({ ok: false, deterministic: true, maxRelError: 1e-3, tolerance: 2e-2, ...part }) as LayerResult

it('is nothing for a result that is ok', () => {
  expect(checkFailureOf(result({ ok: true }))).toBeUndefined()
})

it.each<[Partial<LayerResult>, string[]]>([
  [{ maxRelError: 0.5 }, ['is 0.5, at most 0.02']],
  [{ maxRelError: NaN }, ['is NaN, at most 0.02']],
  [{ deterministic: false }, ['different bits']],
  [{ maxRelError: Infinity, deterministic: false }, ['is Infinity', 'different bits']],
])('says what is wrong with %j', (part, words) => {
  const failure = checkFailureOf(result(part))
  expect(failure?.code).toBe('ERR_MOE_EP_CHECK_FAILED')
  for (const word of words) expect(failure?.message).toContain(word)
})
