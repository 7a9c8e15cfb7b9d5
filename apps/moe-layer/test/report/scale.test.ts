import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { heatLevel, heatLevels, inkRules, stageInkIndices } from '../../src/report/colours.js'
import { formatBytes, formatCount, formatError, formatNumber, formatTime } from '../../src/report/number-format.js'
import { finerStep, labelStep, multiples, niceStep, percent } from '../../src/report/scale.js'

const lengths = fc.double({ min: 1e-3, max: 1e12, noNaN: true })

describe('steps', () => {
  it.each([
    [163, 5, 50],
    [100, 5, 20],
    [7, 4, 2],
    [1, 4, 0.5],
    [0, 4, 1],
  ])('of %d in at most %d parts: %d', (end, most, step) => {
    expect(niceStep(end, most)).toBeCloseTo(step, 12)
  })

  it('are never more than asked for and never far fewer', () => {
    fc.assert(
      fc.property(lengths, fc.integer({ min: 2, max: 50 }), (end, most) => {
        const parts = end / niceStep(end, most)
        expect(parts).toBeLessThanOrEqual(most * (1 + 1e-6))
        expect(parts).toBeGreaterThan(most / 2.6)
      }),
    )
  })

  it('become finer so that coarse marks are fine marks, too', () => {
    fc.assert(
      fc.property(lengths, (end) => {
        const coarse = niceStep(end, 5)
        const fine = finerStep(coarse)
        expect(coarse / fine).toBeCloseTo(Math.round(coarse / fine), 6)
        const marks = new Set(multiples(fine, end))
        expect(multiples(coarse, end).filter((mark) => !marks.has(mark))).toEqual([])
      }),
    )
  })

  it('add up without dust', () => {
    expect(multiples(0.1, 0.5)).toEqual([0, 0.1, 0.2, 0.3, 0.4, 0.5])
  })

  it('thin labels out by doubling', () => {
    expect([1, 8, 9, 64, 512].map((count) => labelStep(count, 8))).toEqual([1, 1, 2, 8, 64])
  })

  it('give lengths as percentages', () => {
    expect([0, 1 / 3, 1].map(percent)).toEqual(['0%', '33.333%', '100%'])
  })
})

describe('numbers for people', () => {
  it.each([
    [0, '0'],
    [7, '7'],
    [0.001, '<0.01'],
    [1.234, '1.23'],
    [12.34, '12.3'],
    [99.97, '100'],
    [123.4, '123'],
    [12345, '12\u202f345'],
  ])('%d', (value, text) => {
    expect(formatNumber(value)).toBe(text)
  })

  it('take the unit that fits', () => {
    expect([0, 999, 1000, 139_264, 6.27e6, 2e9].map(formatBytes)).toEqual(
      ['0 B', '999 B', '1 kB', '139 kB', '6.27 MB', '2 GB'].map((text) => text.replace(' ', '\u00a0')),
    )
    expect([0.5, 88.68, 120_485, 2e6].map(formatTime)).toEqual(
      ['0.50 µs', '88.7 µs', '120 ms', '2 s'].map((text) => text.replace(' ', '\u00a0')),
    )
  })

  it('group thousands and name what is no number', () => {
    expect([1, 1234, 1234567].map(formatCount)).toEqual(['1', '1\u202f234', '1\u202f234\u202f567'])
    expect([0.00555, Number.MAX_VALUE, NaN].map(formatError)).toEqual(['5.55e-3', 'not finite', 'not finite'])
  })
})

describe('colours', () => {
  it('have one level for nothing and the others from little to much', () => {
    expect([0, 1, 50, 100].map((value) => heatLevel(value, 100))).toEqual([0, 1, 4, heatLevels])
    expect(heatLevel(0, 0)).toBe(0)
  })

  it('never fall as the value grows', () => {
    fc.assert(
      fc.property(lengths, lengths, fc.double({ min: 1, max: 9, noNaN: true }), (a, b, factor) => {
        const most = Math.max(a, b) * factor
        const [low, high] = [Math.min(a, b), Math.max(a, b)]
        expect(heatLevel(low, most)).toBeLessThanOrEqual(heatLevel(high, most))
        expect(heatLevel(low, most)).toBeGreaterThan(0)
      }),
    )
  })

  it.each([0, 1] as const)('run in lightness alone, and can be read on: theme %d', (theme) => {
    const inks = inksOf(theme)
    const levels = Array.from({ length: heatLevels }, (_, index) => luminance(inks.get(`heat-${index + 1}`)!))
    const sorted = [...levels].sort((a, b) => (theme === 0 ? b - a : a - b))
    expect(levels).toEqual(sorted)
    for (const [name, fill] of inks) {
      if (!name.startsWith('on-')) expect([name, contrast(fill, inks.get(`on-${name}`)!) >= 4.5]).toEqual([name, true])
    }
  })

  it.each([0, 1] as const)('of stages that follow one another differ in lightness: theme %d', (theme) => {
    const inks = inksOf(theme)
    for (let stage = 0; stage < 6; stage++) {
      expect(contrast(inks.get(`stage-${stage}`)!, inks.get(`stage-${stage + 1}`)!)).toBeGreaterThan(1.5)
    }
  })

  it('stay with known stages and go round for others', () => {
    expect([...stageInkIndices(['combine', 'quantise', 'gate', 'shared', 'more', 'again'])]).toEqual([
      ['combine', 6],
      ['quantise', 7],
      ['gate', 0],
      ['shared', 8],
      ['more', 9],
      ['again', 7],
    ])
  })
})

function inksOf(theme: 0 | 1): Map<string, string> {
  return new Map([...inkRules(theme).matchAll(/\.([\w-]+)\{fill:(#\w{6})\}/g)].map(([, name, fill]) => [name!, fill!]))
}

/** Relative luminance and contrast as the accessibility guidelines define them. */
function luminance(colour: string): number {
  const [red, green, blue] = [1, 3, 5].map((at) => {
    const part = Number.parseInt(colour.slice(at, at + 2), 16) / 255
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
  })
  return 0.2126 * red! + 0.7152 * green! + 0.0722 * blue!
}

function contrast(a: string, b: string): number {
  const [low, high] = [luminance(a), luminance(b)].sort((one, other) => one - other)
  return (high! + 0.05) / (low! + 0.05)
}
