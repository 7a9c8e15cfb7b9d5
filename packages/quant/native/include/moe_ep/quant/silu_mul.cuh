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

// x / y, rounded to nearest even, for |x| < 80 and y = 1 + Exp(-x): the usual steps, without the
// long way that the compiler's division has for numbers near the ends of the range, and takes for
// zeros. Tried for all such x, and reciprocals up to two units in the last place off: x = 2^-23
// needs the nearest one, which is what this instruction gives.
__device__ __forceinline__ float QuotientForSilu(float x, float y) {
  float near;
  asm("rcp.approx.f32 %0, %1;" : "=f"(near) : "f"(y));
  const float reciprocal = __fmaf_rn(__fmaf_rn(-y, near, 1.0f), near, near);
  const float guess = x * reciprocal;
  const float quotient = __fmaf_rn(__fmaf_rn(-y, guess, x), reciprocal, guess);
  // The correction loses the sign of a zero.
  return __uint_as_float(__float_as_uint(quotient) | (__float_as_uint(x) & 0x80000000u));
}

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
  return QuotientForSilu(x, 1.0f + exp);
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

// Silu of bf16 numbers, looked up: there are few of them, and a formula takes 20 instructions. Of
// magnitudes from 2^-26 to below 2^6. Silu of smaller ones is a half of them.
template <bool kToF32>
struct SiluTable {
  using Entry = std::conditional_t<kToF32, float, uint16_t>;
  static constexpr uint32_t kLeast = (127 - 26) << 7;  // the first magnitude's bits
  static constexpr uint32_t kMagnitudes = 32 << 7;
  static constexpr uint32_t kOne = 0x3f803f80u;        // two numbers in the table: 1
  static constexpr uint32_t kHalves = (127 - 9) << 7;  // below it Silu, rounded to bf16, is a half
  static constexpr int kLog2Bytes = kToF32 ? 2 : 1;    // of an entry

  Entry entries[2 * kMagnitudes];  // positive numbers, then negative ones

  // All threads of a block fill it together, and meet before they use it.
  __device__ __forceinline__ void Fill() {
    for (uint32_t i = threadIdx.x; i < 2 * kMagnitudes; i += blockDim.x) {
      const uint32_t magnitude = i % kMagnitudes + kLeast;
      const uint32_t bits = magnitude | (i >= kMagnitudes ? 0x8000u : 0u);
      const float x = __uint_as_float(bits << 16);
      if constexpr (kToF32) {
        entries[i] = PlainSilu(x);
      } else if (magnitude < kHalves) {
        entries[i] = static_cast<uint16_t>(bits - 0x80u);
      } else {
        entries[i] = BF16Element::LaneFromFloat(SiluToRound(x));
      }
    }
  }

  // Where in the table the pair of numbers lies, in bytes; notes in `any` whether it does.
  static __device__ __forceinline__ uint32_t Places(uint32_t pair, uint32_t* any) {
    // A lower half that borrows from the upper one is not in the table, and has bits of kBeside.
    const uint32_t from_least = pair - kLeast * 0x10001u;
    *any |= from_least;
    // The sum moves negative numbers, less their sign, behind the positive ones. It would make
    // positive ones larger, so that the minimum leaves them as they are.
    constexpr uint32_t kSign = (0x10000u - 0x8000u + kMagnitudes) * 0x10001u;
    return __viaddmin_u16x2(from_least, kSign, from_least) << kLog2Bytes;
  }
  // Of two numbers that are not both in the table at least one has such a bit, and none otherwise.
  static constexpr uint32_t kBeside = (0x8000u - kMagnitudes) * 0x10001u;
  static __device__ __forceinline__ bool Holds(uint32_t any) { return (any & kBeside) == 0; }
  __device__ __forceinline__ Entry At(uint32_t byte) const {
    return *reinterpret_cast<const Entry*>(reinterpret_cast<const uint8_t*>(entries) + byte);
  }

  // Silu of a number below the table's end, by its bits.
  __device__ __forceinline__ float Of(uint32_t bits) const {
    const uint32_t magnitude = bits & 0x7fffu;
    const uint32_t place = max(magnitude, kLeast) - kLeast;
    const Entry entry = entries[place | (bits >> 15) * kMagnitudes];
    float silu;
    if constexpr (kToF32) {
      silu = entry;
    } else {
      silu = __uint_as_float(static_cast<uint32_t>(entry) << 16);
    }
    return magnitude < kLeast ? 0.5f * __uint_as_float(bits << 16) : silu;
  }
};

// Products where some gate is not in the table: a function of its own, because such gates are rare.
// Zeros and all below the table have a short way; with a gate at its end or above, none has.
template <bool kToF32>
__device__ __noinline__ SiluMulVector<BF16Element, kToF32> SiluMulBesideTable(
    const SiluTable<kToF32>& table, LaneVector<BF16Element, 8> gates,
    LaneVector<BF16Element, 8> ups) {
  if (Peak<BF16Element>::Bits(gates.PeakOf()) >=
      SiluTable<kToF32>::kLeast + SiluTable<kToF32>::kMagnitudes) {
    return SiluMul<BF16Element, kToF32>(gates, ups, std::numeric_limits<float>::infinity());
  }
  SiluMulVector<BF16Element, kToF32> result;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float low = table.Of(gates.words[w] & 0xffffu);
    const float high = table.Of(gates.words[w] >> 16);
    if constexpr (kToF32) {
      result.words[2 * w] = __float_as_uint(low * __uint_as_float(ups.words[w] << 16));
      result.words[2 * w + 1] = __float_as_uint(high * __uint_as_float(ups.words[w] & 0xffff0000u));
    } else {
      result.words[w] = MulPairBF16(PairOfFloats<BF16Element>(low, high), ups.words[w]);
    }
  }
  return result;
}

// SiluMul of bf16 with a table.
template <bool kToF32>
__device__ __forceinline__ SiluMulVector<BF16Element, kToF32> SiluMulByTable(
    const SiluTable<kToF32>& table, LaneVector<BF16Element, 8> gates,
    LaneVector<BF16Element, 8> ups, float limit) {
  if (limit < std::numeric_limits<float>::infinity()) {
    Limit<BF16Element, false>(gates, limit);
    Limit<BF16Element, true>(ups, limit);
  }
  uint32_t places[4];
  uint32_t any = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) places[w] = SiluTable<kToF32>::Places(gates.words[w], &any);
  if (!SiluTable<kToF32>::Holds(any)) [[unlikely]]
    return SiluMulBesideTable<kToF32>(table, gates, ups);
  SiluMulVector<BF16Element, kToF32> result;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const auto low = table.At(places[w] & 0xffffu);
    const auto high = table.At(places[w] >> 16);
    if constexpr (kToF32) {
      result.words[2 * w] = __float_as_uint(low * __uint_as_float(ups.words[w] << 16));
      result.words[2 * w + 1] = __float_as_uint(high * __uint_as_float(ups.words[w] & 0xffff0000u));
    } else {
      result.words[w] = MulPairBF16(low | static_cast<uint32_t>(high) << 16, ups.words[w]);
    }
  }
  return result;
}

}  // namespace moe_ep::cuda
