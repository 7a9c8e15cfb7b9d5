import fc from 'fast-check'
import { expect, test } from 'vitest'
import { RegionLayout } from '../../src/index.js'
import { thrownBy } from './world.js'

const sizes = fc.array(fc.nat(10_000), { maxLength: 40 })
const alignments = fc.integer({ min: 0, max: 16 }).map((power) => 2 ** power)

test('regions are aligned, in order, apart from each other and inside the whole', () => {
  fc.assert(
    fc.property(sizes, alignments, (lengths, alignment) => {
      const layout = new RegionLayout(alignment)
      let end = 0
      for (const length of lengths) {
        const region = layout.reserve(length)
        expect(region.byteLength).toBe(length)
        expect(region.byteOffset % alignment).toBe(0)
        expect(region.byteOffset).toBeGreaterThanOrEqual(end)
        expect(region.byteOffset - end).toBeLessThan(alignment)
        end = region.byteOffset + length
        expect(layout.byteLength).toBeGreaterThanOrEqual(end)
        expect(layout.byteLength - end).toBeLessThan(alignment)
      }
    }),
  )
})

test('the same calls give the same places', () => {
  fc.assert(
    fc.property(sizes, (lengths) => {
      const [one, two] = [new RegionLayout(), new RegionLayout()]
      expect(lengths.map((length) => one.reserve(length))).toEqual(lengths.map((length) => two.reserve(length)))
      expect(one.byteLength).toBe(two.byteLength)
    }),
  )
})

test('sizes beyond 32 bits keep their places exactly', () => {
  const layout = new RegionLayout()
  layout.reserve(5 * 2 ** 32 + 1)
  expect(layout.reserve(7).byteOffset).toBe(5 * 2 ** 32 + 128)
})

test.each([0, -1, 3, 48, 1.5, Number.NaN])('refuses the alignment %s', (alignment) => {
  expect(thrownBy(() => new RegionLayout(alignment)).code).toBe('ERR_MOE_EP_ARGUMENT')
})

test.each([-1, 0.5, Number.NaN, Number.MAX_SAFE_INTEGER])('refuses a region of %s bytes', (byteLength) => {
  const layout = new RegionLayout()
  layout.reserve(1)
  expect(thrownBy(() => layout.reserve(byteLength)).code).toBe('ERR_MOE_EP_ARGUMENT')
})
