// How the scale of a group of e4m3 elements comes from its largest magnitude, and where it is put.
// README.md defines every value.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "moe_ep/math.h"
#include "moe_ep/quant/lanes.h"

namespace moe_ep {

// The numbers are shared with src/native.ts.
enum class GroupNumerics : int32_t {
  kVllm = 0,        // amax at least 1e-10; scale = amax / 448; code of x / scale
  kDeepEp = 1,      // amax at least 1e-4; scale = amax * (1/448); code of x * (448 / amax)
  kReciprocal = 2,  // amax at least 1e-10; scale = amax * (1/448); code of x / scale
  kMaskedBF16 = 3,  // every step rounded to bf16: see silu_mul.h
  kPerToken = 4,    // amax at most a bound; scale = amax / 448, at least 1 / (448 * 512)
};

struct ScaleRule {
  GroupNumerics numerics;
  bool power_of_two;  // the scale becomes the smallest power of two that is not below it
  float upper_bound = std::numeric_limits<float>::infinity();  // of amax, kPerToken only
};

// What is done to an element before it is rounded to e4m3.
enum class Encoding {
  kDivide,            // x / scale, which cannot pass 464
  kDivideSaturating,  // x / scale
  kMultiply,          // x * factor, which cannot pass 464
  kMultiplyBF16,      // bf16(x * factor)
};

constexpr Encoding EncodingOf(ScaleRule rule) {
  if (rule.numerics == GroupNumerics::kMaskedBF16) return Encoding::kMultiplyBF16;
  if (rule.power_of_two || rule.numerics == GroupNumerics::kDeepEp) return Encoding::kMultiply;
  if (rule.upper_bound < std::numeric_limits<float>::infinity()) return Encoding::kDivideSaturating;
  return Encoding::kDivide;
}

struct GroupScale {
  float scale;   // the multiplier that dequantises
  float factor;  // for the encodings that multiply
};

// The smallest power of two that is not below a positive normal number; infinity stays.
MOE_EP_LANE float PowerOfTwoNotBelow(float value) {
  return FloatOfBits((BitsOfFloat(value) + 0x7fffffu) & 0x7f800000u);
}

MOE_EP_LANE float RoundToBF16(float value) { return BF16ToFloat(FloatToBF16(value)); }

namespace detail {

template <GroupNumerics kNumerics, bool kPowerOfTwo>
MOE_EP_LANE GroupScale ScaleOf(float amax, float upper_bound) {
  constexpr float kReciprocal448 = 1.0f / 448.0f;
  if constexpr (kNumerics == GroupNumerics::kDeepEp) {
    const float floored = std::max(1e-4f, amax);
    if constexpr (!kPowerOfTwo) return {floored * kReciprocal448, 448.0f / floored};
    const float scale = PowerOfTwoNotBelow(floored * kReciprocal448);
    return {scale, 1.0f / scale};
  } else if constexpr (kNumerics == GroupNumerics::kMaskedBF16) {
    const float floored = std::max(RoundToBF16(1e-10f), amax);
    float scale = RoundToBF16(floored * RoundToBF16(kReciprocal448));
    if constexpr (kPowerOfTwo) {
      // The logarithm is rounded to bf16 too, which may bring it down to the next whole number.
      const float logarithm = RoundToBF16(Log2(scale));
      const float whole = (logarithm + kRoundToWhole) - kRoundToWhole;
      scale = Exp2(whole < logarithm ? whole + 1.0f : whole);
    }
    return {scale, RoundToBF16(1.0f / scale)};
  } else if constexpr (kNumerics == GroupNumerics::kPerToken) {
    const float scale = std::max(1.0f / (448.0f * 512.0f), std::min(amax, upper_bound) / 448.0f);
    return {scale, 0.0f};
  } else {
    const float floored = std::max(1e-10f, amax);
    const float scale =
        kNumerics == GroupNumerics::kReciprocal ? floored * kReciprocal448 : floored / 448.0f;
    if constexpr (!kPowerOfTwo) return {scale, 0.0f};
    const float least = kNumerics == GroupNumerics::kReciprocal ? scale : std::max(1e-10f, scale);
    const float power = PowerOfTwoNotBelow(least);
    return {power, 1.0f / power};
  }
}

template <GroupNumerics kNumerics, bool kPowerOfTwo>
MOE_EP_LANE void ScalesOf(const float* __restrict amax, int64_t count, float upper_bound,
                          float* __restrict scales, float* __restrict factors) {
  for (int64_t g = 0; g < count; ++g) {
    const GroupScale made = ScaleOf<kNumerics, kPowerOfTwo>(amax[g], upper_bound);
    scales[g] = made.scale;
    factors[g] = made.factor;
  }
}

}  // namespace detail

// Scales and factors of groups with these largest magnitudes.
MOE_EP_RARE void MakeScales(ScaleRule rule, const float* amax, int64_t count, float* scales,
                            float* factors) {
  using enum GroupNumerics;
  const float bound = rule.upper_bound;
  switch (rule.numerics) {
    case kVllm:
      if (rule.power_of_two)
        return detail::ScalesOf<kVllm, true>(amax, count, bound, scales, factors);
      return detail::ScalesOf<kVllm, false>(amax, count, bound, scales, factors);
    case kDeepEp:
      if (rule.power_of_two)
        return detail::ScalesOf<kDeepEp, true>(amax, count, bound, scales, factors);
      return detail::ScalesOf<kDeepEp, false>(amax, count, bound, scales, factors);
    case kReciprocal:
      if (rule.power_of_two)
        return detail::ScalesOf<kReciprocal, true>(amax, count, bound, scales, factors);
      return detail::ScalesOf<kReciprocal, false>(amax, count, bound, scales, factors);
    case kMaskedBF16:
      if (rule.power_of_two)
        return detail::ScalesOf<kMaskedBF16, true>(amax, count, bound, scales, factors);
      return detail::ScalesOf<kMaskedBF16, false>(amax, count, bound, scales, factors);
    case kPerToken:
      return detail::ScalesOf<kPerToken, false>(amax, count, bound, scales, factors);
  }
}

// What a scale tensor holds. The numbers are shared with src/native.ts.
enum class ScaleFormat : int32_t {
  kF32 = 0,
  kPowerOfTwo = 1,        // f32
  kPackedPowerOfTwo = 2,  // exponent bytes, four to an i32
};

// The scales of one row: f32 numbers, or exponent bytes packed four to a 32-bit word, the first
// group in the lowest byte.
struct ScaleRow {
  uint8_t* data;   // the row's first number or word
  int64_t stride;  // bytes from one number or word to the next
  bool packed;

  // Writes groups [first, first + count). Packed scales must be powers of two.
  MOE_EP_LANE void Store(int64_t first, int64_t count, const float* scales) const {
    if (packed) {
      for (int64_t g = 0; g < count; ++g) {
        const int64_t group = first + g;
        data[(group >> 2) * stride + (group & 3)] =
            static_cast<uint8_t>(BitsOfFloat(scales[g]) >> 23);
      }
    } else {
      for (int64_t g = 0; g < count; ++g) {
        *reinterpret_cast<float*>(data + (first + g) * stride) = scales[g];
      }
    }
  }

  // Zeroes the bytes of the last word that no group has.
  MOE_EP_LANE void StorePadding(int64_t groups) const {
    if (!packed) return;
    for (int64_t g = groups; (g & 3) != 0; ++g) data[(g >> 2) * stride + (g & 3)] = 0;
  }

  MOE_EP_LANE float Load(int64_t group) const {
    if (packed) return E8M0ToFloat(data[(group >> 2) * stride + (group & 3)]);
    return *reinterpret_cast<const float*>(data + group * stride);
  }
};

// The scales of a matrix, in any of the layouts.
struct ScaleMatrix {
  uint8_t* data;
  int64_t rows;
  int64_t columns;        // numbers, or words of packed scales
  int64_t row_stride;     // bytes
  int64_t column_stride;  // bytes
  bool packed;

  MOE_EP_LANE ScaleRow Row(int64_t row) const {
    return {data + row * row_stride, column_stride, packed};
  }
};

}  // namespace moe_ep
