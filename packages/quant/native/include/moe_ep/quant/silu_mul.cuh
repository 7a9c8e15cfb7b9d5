// silu(gate) * up of vectors in registers: the device's form of silu_mul.h, equal bit for bit.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "moe_ep/math.h"
#include "moe_ep/quant/lane_vector.cuh"

namespace moe_ep::cuda {

// Below it, gates need none of Exp's care for the ends of its range: 80 as bf16, f16 and f32.
template <typename Element>
inline constexpr uint32_t kPlainGate = std::is_same_v<Element, BF16Element>  ? 0x42a0u
                                       : std::is_same_v<Element, F16Element> ? 0x5500u
                                                                             : 0x42a00000u;

// Silu for |x| < 80: the same operations, but for the clamps and with 2^n as one addition to the
// exponent, which no number of this range leaves.
__device__ __forceinline__ float PlainSilu(float x) {
  const float y = -x;
  const float shifted = y * 1.44269504f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  const float rest = (y - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float series = 1.3814537e-3f;
  series = series * rest + 8.368745e-3f;
  series = series * rest + 4.166839e-2f;
  series = series * rest + 1.6666521e-1f;
  series = series * rest + 4.9999994e-1f;
  const float power = (series * (rest * rest) + rest) + 1.0f;
  const float exp = __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
  return x / (1.0f + exp);
}

// bf16(Silu(x)) before the rounding to bf16, for bf16 x with |x| < 80: fused operations and a
// quotient that may be off by its last bit, which the rounding hides. Tried for all such x and
// reciprocals up to two units in the last place off: no other bf16 comes out.
__device__ __forceinline__ float SiluToRound(float x) {
  const float y = -x;
  const float shifted = __fmaf_rn(y, 1.44269504f, 12582912.0f);
  const float whole = shifted - 12582912.0f;
  const float rest = __fmaf_rn(whole, 2.12194440e-4f, __fmaf_rn(whole, -0.693359375f, y));
  float series = 1.3814537e-3f;
  series = __fmaf_rn(series, rest, 8.368745e-3f);
  series = __fmaf_rn(series, rest, 4.166839e-2f);
  series = __fmaf_rn(series, rest, 1.6666521e-1f);
  series = __fmaf_rn(series, rest, 4.9999994e-1f);
  const float power = __fmaf_rn(__fmaf_rn(series, rest, 1.0f), rest, 1.0f);
  const float exp = __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
  const float divisor = 1.0f + exp;
  float reciprocal;
  asm("rcp.approx.f32 %0, %1;" : "=f"(reciprocal) : "f"(divisor));
  const float near = x * reciprocal;
  const float quotient = __fmaf_rn(__fmaf_rn(-divisor, near, x), reciprocal, near);
  // The correction loses the sign of a zero.
  return __uint_as_float(__float_as_uint(quotient) | (__float_as_uint(x) & 0x80000000u));
}

__device__ __forceinline__ uint32_t MulPairBF16(uint32_t a, uint32_t b) {
  uint32_t product;  // one rounding: the product of two bf16 is exact in f32
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// Limits all elements to at most `limit`, and to at least -`limit` where kBothWays; NaN stays.
template <typename Element, bool kBothWays, int kCount>
__device__ __forceinline__ void Limit(LaneVector<Element, kCount>& v, float limit) {
  uint32_t most = 0;
  if constexpr (sizeof(typename Element::Storage) == 2) most = PairOfFloats<Element>(limit, limit);
#pragma unroll
  for (uint32_t& word : v.words) {
    if constexpr (std::is_same_v<Element, BF16Element>) {
      asm("min.NaN.bf16x2 %0, %0, %1;" : "+r"(word) : "r"(most));
      if (kBothWays) asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(word) : "r"(most ^ 0x80008000u));
    } else if constexpr (std::is_same_v<Element, F16Element>) {
      asm("min.NaN.f16x2 %0, %0, %1;" : "+r"(word) : "r"(most));
      if (kBothWays) asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(word) : "r"(most ^ 0x80008000u));
    } else {
      const float least = kBothWays ? -limit : -std::numeric_limits<float>::infinity();
      word = __float_as_uint(moe_ep::detail::ClampNumber(__uint_as_float(word), least, limit));
    }
  }
}

// One product as f32: rounded to the element type twice, or never.
template <typename Element, bool kToF32>
__device__ __forceinline__ float SiluMulOf(float gate, float up, float limit) {
  const float silu = Silu(gate > limit ? limit : gate);
  const float factor = moe_ep::detail::ClampNumber(up, -limit, limit);
  if constexpr (kToF32) return silu * factor;
  const float rounded = Element::LaneToFloat(Element::LaneFromFloat(silu));
  return Element::LaneToFloat(Element::LaneFromFloat(rounded * factor));
}

// Gates of a lane, ones where it has none: the quotient of a zero goes the long way of a division,
// and all lanes of the warp with it.
template <typename Element, bool kToF32>
__device__ __forceinline__ LaneVector<Element, kLoadElements<Element>> LoadGatesIf(
    bool wanted, const typename Element::Storage* from) {
  auto gates = LaneVector<Element, kLoadElements<Element>>::LoadIf(wanted, from);
  if constexpr (kToF32 || !std::is_same_v<Element, BF16Element>) {
    uint32_t ones = __float_as_uint(1.0f);
    if constexpr (sizeof(typename Element::Storage) == 2) ones = PairOfFloats<Element>(1.0f, 1.0f);
#pragma unroll
    for (uint32_t& word : gates.words)
      if (!wanted) word = ones;
  }
  return gates;
}

template <typename Element, bool kToF32>
using SiluMulVector =
    LaneVector<std::conditional_t<kToF32, F32Element, Element>, kLoadElements<Element>>;

// `limit` must be an element's value; infinity limits nothing.
template <typename Element, bool kToF32>
__device__ __forceinline__ SiluMulVector<Element, kToF32> SiluMul(
    LaneVector<Element, kLoadElements<Element>> gates,
    LaneVector<Element, kLoadElements<Element>> ups, float limit) {
  constexpr int kCount = kLoadElements<Element>;
  using Product = SiluMulVector<Element, kToF32>;
  constexpr float kNoLimit = std::numeric_limits<float>::infinity();
  if (limit < kNoLimit) {
    Limit<Element, false>(gates, limit);
    Limit<Element, true>(ups, limit);
  }
  const bool plain = Peak<Element>::Bits(gates.PeakOf()) < kPlainGate<Element>;
  float gate[kCount];
  float up[kCount];
  float product[kCount];
  gates.ToFloats(gate);
  if constexpr (std::is_same_v<Element, BF16Element> && !kToF32) {
    if (plain) {
      Product result;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        const uint32_t silu =
            PairOfFloats<BF16Element>(SiluToRound(gate[2 * i]), SiluToRound(gate[2 * i + 1]));
        result.words[i] = MulPairBF16(silu, ups.words[i]);
      }
      return result;
    }
    ups.ToFloats(up);
  } else {
    ups.ToFloats(up);
    if (plain) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) product[i] = PlainSilu(gate[i]);
      if constexpr (!kToF32) LaneVector<Element, kCount>::OfFloats(product).ToFloats(product);
#pragma unroll
      for (int i = 0; i < kCount; ++i) product[i] *= up[i];
      return Product::OfFloats(product);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    product[i] = SiluMulOf<Element, kToF32>(gate[i], up[i], kNoLimit);
  }
  return Product::OfFloats(product);
}

}  // namespace moe_ep::cuda
