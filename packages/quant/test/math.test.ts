import { exp2F32, expF32, log2F32 } from '@moe-ep/core'
import { expect, test } from 'vitest'

const floats = new Float32Array(1)
const words = new Uint32Array(floats.buffer)
const floatOf = (bits: number): number => {
  words[0] = bits
  return floats[0]!
}

/** The distance to the exact result in units of its last place as an f32. */
function unitsOff(found: number, exact: number): number {
  if (Math.fround(exact) === found) return 0
  const exponent = Math.max(Math.floor(Math.log2(Math.abs(exact))), -126)
  return Math.abs(found - exact) / 2 ** (exponent - 23)
}

test.each([
  ['expF32', expF32, Math.exp, 1, -103.9, 88.72],
  ['exp2F32', exp2F32, (x: number) => 2 ** x, 1.25, -149, 127.99],
  ['log2F32', log2F32, Math.log2, 1.8, 2 ** -149, 3.4e38],
] as const)(
  '%s is as close as it promises, for arguments of all exponents',
  (_, found, exact, units, lowest, highest) => {
    let worst = 0
    for (let bits = 1; bits < 0x1_0000_0000; bits += 20_011) {
      const x = floatOf(bits)
      if (x >= lowest && x <= highest) worst = Math.max(worst, unitsOff(found(x), exact(x)))
    }
    expect(worst).toBeGreaterThan(0.4)
    expect(worst).toBeLessThanOrEqual(units)
  },
)

test('powers of two are exact, and the ends are infinity, zero and NaN', () => {
  for (let exponent = -149; exponent < 128; exponent++) {
    expect(exp2F32(exponent)).toBe(2 ** exponent)
    expect(log2F32(2 ** exponent)).toBe(exponent)
  }
  expect([expF32(0), expF32(-0), expF32(89), expF32(Infinity), expF32(-104), expF32(-Infinity)]).toEqual([
    1,
    1,
    Infinity,
    Infinity,
    0,
    0,
  ])
  expect([exp2F32(128), exp2F32(-150), log2F32(0), log2F32(-0), log2F32(Infinity)]).toEqual([
    Infinity,
    0,
    -Infinity,
    -Infinity,
    Infinity,
  ])
  expect([expF32(NaN), exp2F32(NaN), log2F32(NaN), log2F32(-1)]).toEqual([NaN, NaN, NaN, NaN])
})
