import { expect, it } from 'vitest'
import type { LayerResult } from '../../src/results/layer-result.js'
import { requireRight } from '../../src/results/require-right.js'

const result = (part: Partial<LayerResult>): LayerResult =>
  ({ ok: false, deterministic: true, maxRelError: 1e-3, tolerance: 2e-2, ...part }) as LayerResult

it('a result that is ok passes', () => {
  expect(() => requireRight(result({ ok: true }))).not.toThrow()
})

it.each<[Partial<LayerResult>, string[]]>([
  [{ maxRelError: 0.066123 }, ['is 6.61e-2, at most 0.02']],
  [{ maxRelError: Number.MAX_VALUE }, ['is 1.80e+308, at most 0.02']],
  [{ deterministic: false }, ['different bits']],
  [{ maxRelError: 0.5, deterministic: false }, ['is 5.00e-1', 'different bits']],
])('says what is wrong with %j', (part, words) => {
  for (const word of words) {
    const failure = { code: 'ERR_MOE_EP_CHECK_FAILED', message: expect.stringContaining(word) }
    expect(() => requireRight(result(part))).toThrow(expect.objectContaining(failure))
  }
})
