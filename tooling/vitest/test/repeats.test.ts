import { afterEach, expect, it, vi } from 'vitest'
import { repeats } from '../repeats.js'

afterEach(() => vi.unstubAllEnvs())

it.each([
  [undefined, 40],
  ['', 40],
  ['3', 3],
  ['40', 40],
  ['1000', 40],
])('MOE_EP_TEST_REPEATS=%s makes 40 repeats %i', (text, expected) => {
  vi.stubEnv('MOE_EP_TEST_REPEATS', text)
  expect(repeats(40)).toBe(expected)
})

it.each(['0', '-1', '1.5', 'few'])('MOE_EP_TEST_REPEATS=%s is refused', (text) => {
  vi.stubEnv('MOE_EP_TEST_REPEATS', text)
  expect(() => repeats(40)).toThrow('expected a positive integer')
})
