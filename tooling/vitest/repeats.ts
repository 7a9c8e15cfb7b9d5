/**
 * How often a test does what it does many times with changing inputs: `count`, or as often as MOE_EP_TEST_REPEATS says, if that
 * is less. Of a sanitizer under which a case takes seconds, a few say what many would.
 *
 * @throws Error if MOE_EP_TEST_REPEATS is no positive integer.
 */
export function repeats(count: number): number {
  const text = process.env['MOE_EP_TEST_REPEATS']
  if (text === undefined || text === '') return count
  const most = Number(text)
  if (!Number.isInteger(most) || most < 1)
    throw new Error(`MOE_EP_TEST_REPEATS: expected a positive integer, received "${text}"`)
  return Math.min(count, most)
}
