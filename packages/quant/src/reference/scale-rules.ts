import { bf16ToF32, exp2F32, f32ToBf16, f32ToBits, log2F32 } from '@moe-ep/core'

/** All rules by which a group's e4m3 scale comes from its largest magnitude. */
export type ScaleRule =
  | { readonly kind: 'vllm' | 'deepep' | 'reciprocal' | 'masked-bf16'; readonly powerOfTwo: boolean }
  | { readonly kind: 'per-token'; readonly upperBound: number }

/** A group's stored scale, and how one of its elements becomes the number to round to e4m3. */
export interface GroupScale {
  readonly scale: number
  readonly apply: (x: number) => number
}

const largest = 448
const round = Math.fround
const reciprocalOfLargest = round(1 / largest)
const roundToBf16 = (x: number): number => bf16ToF32(f32ToBf16(x))

/** The smallest power of two that is not below a positive normal f32; infinity stays. */
export function powerOfTwoNotBelow(value: number): number {
  if (value === Infinity) return value
  const bits = f32ToBits(value)
  const exponent = (bits >>> 23) - 127
  return 2 ** (exponent + ((bits & 0x7fffff) !== 0 ? 1 : 0))
}

/** The largest magnitude of a group; NaN is passed over. */
export function largestMagnitude(group: ArrayLike<number>): number {
  return Array.from(group, Math.abs)
    .filter((magnitude) => !Number.isNaN(magnitude))
    .reduce((a, b) => Math.max(a, b), 0)
}

export function scaleOf(amax: number, rule: ScaleRule): GroupScale {
  const divide = (scale: number): GroupScale => ({ scale, apply: (x) => round(x / scale) })
  switch (rule.kind) {
    case 'vllm': {
      const scale = round(Math.max(round(1e-10), amax) / largest)
      return divide(rule.powerOfTwo ? powerOfTwoNotBelow(Math.max(round(1e-10), scale)) : scale)
    }
    case 'reciprocal': {
      const scale = round(Math.max(round(1e-10), amax) * reciprocalOfLargest)
      return divide(rule.powerOfTwo ? powerOfTwoNotBelow(scale) : scale)
    }
    case 'deepep': {
      const floored = Math.max(round(1e-4), amax)
      const scale = round(floored * reciprocalOfLargest)
      if (rule.powerOfTwo) return divide(powerOfTwoNotBelow(scale))
      const multiplier = round(largest / floored)
      return { scale, apply: (x) => round(x * multiplier) }
    }
    case 'masked-bf16': {
      const floored = Math.max(roundToBf16(1e-10), amax)
      const exact = roundToBf16(round(floored * roundToBf16(reciprocalOfLargest)))
      const scale = rule.powerOfTwo ? exp2F32(Math.ceil(roundToBf16(log2F32(exact)))) : exact
      const multiplier = roundToBf16(round(1 / scale))
      return { scale, apply: (x) => roundToBf16(round(x * multiplier)) }
    }
    case 'per-token':
      return divide(Math.max(round(1 / (largest * 512)), round(Math.min(amax, rule.upperBound) / largest)))
  }
}
