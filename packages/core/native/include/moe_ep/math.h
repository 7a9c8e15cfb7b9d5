// exp, exp2, log2 and silu as fixed sequences of single f32 operations, so that every device gives
// the same bits; src/math.ts carries the same sequences. Free of branches, so that loops over them
// vectorise. Build without contraction (-ffp-contract=off, --fmad=false).
//
// Largest error, measured over all f32 arguments, in units in the last place of the exact result:
// Exp 0.983, Exp2 1.228, Log2 1.791, subnormal arguments and results included. NaN gives a NaN
// whose bits are open: store it through a conversion of moe_ep/dtype.h.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define MOE_EP_MATH __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Forced into the caller: only there does it get the instruction set of the caller's MOE_EP_CLONES.
#define MOE_EP_MATH inline __attribute__((always_inline))
#else
#define MOE_EP_MATH inline
#endif

namespace moe_ep {
namespace detail {

// Adding it to a number below 2^22 rounds that to a whole number, which its low bits then hold.
inline constexpr float kRoundToWhole = 12582912.0f;  // 1.5 * 2^23

MOE_EP_MATH float MathFloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
MOE_EP_MATH uint32_t MathBitsOf(float value) { return std::bit_cast<uint32_t>(value); }

// All ones or zero: choices by masks keep loops free of branches.
MOE_EP_MATH uint32_t MaskOf(bool condition) { return 0u - static_cast<uint32_t>(condition); }

// value * 2^exponent for exponents from -252 to 254, in two steps because 2^exponent itself may be
// no f32. The first step is exact for values near 1, so only one rounds. Unsigned, because the
// exponent of a NaN is anything.
MOE_EP_MATH float ScaleByPowerOfTwo(float value, int32_t exponent) {
  const int32_t half = exponent >> 1;
  const uint32_t first = static_cast<uint32_t>(half + 127) << 23;
  const uint32_t second = (static_cast<uint32_t>(exponent) - static_cast<uint32_t>(half) + 127u)
                          << 23;
  return value * MathFloatOf(first) * MathFloatOf(second);
}

// Comparisons are false for NaN, which therefore stays.
MOE_EP_MATH float ClampNumber(float value, float lowest, float highest) {
  const float low = value < lowest ? lowest : value;
  return low > highest ? highest : low;
}

}  // namespace detail

// e^x. Infinity above 88.72284, zero below -103.97.
MOE_EP_MATH float Exp(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // ten bits: its product with a whole number is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  const float clamped = detail::ClampNumber(x, -105.0f, 90.0f);
  const float shifted = clamped * kLog2E + detail::kRoundToWhole;
  const float whole = shifted - detail::kRoundToWhole;
  const float rest = (clamped - whole * kLn2High) - whole * kLn2Low;
  float series = 1.3814537e-3f;
  series = series * rest + 8.368745e-3f;
  series = series * rest + 4.166839e-2f;
  series = series * rest + 1.6666521e-1f;
  series = series * rest + 4.9999994e-1f;
  const float power = (series * (rest * rest) + rest) + 1.0f;
  const auto exponent =
      static_cast<int32_t>(detail::MathBitsOf(shifted) - detail::MathBitsOf(detail::kRoundToWhole));
  return detail::ScaleByPowerOfTwo(power, exponent);
}

// 2^x; exact for whole x. Infinity from 128 on, zero below -150.
MOE_EP_MATH float Exp2(float x) {
  const float clamped = detail::ClampNumber(x, -152.0f, 130.0f);
  const float shifted = clamped + detail::kRoundToWhole;
  const float rest = clamped - (shifted - detail::kRoundToWhole);
  float series = 1.5353366e-4f;
  series = series * rest + 1.3398874e-3f;
  series = series * rest + 9.618437e-3f;
  series = series * rest + 5.5503324e-2f;
  series = series * rest + 2.4022648e-1f;
  series = series * rest + 6.931472e-1f;
  const float power = series * rest + 1.0f;
  const auto exponent =
      static_cast<int32_t>(detail::MathBitsOf(shifted) - detail::MathBitsOf(detail::kRoundToWhole));
  return detail::ScaleByPowerOfTwo(power, exponent);
}

// The logarithm to base 2; exact for powers of two. -infinity for zeros, NaN for negative numbers.
MOE_EP_MATH float Log2(float x) {
  const uint32_t bits = detail::MathBitsOf(x);
  // Subnormal numbers are brought into the normal range first.
  const uint32_t raised = detail::MathBitsOf(x * 8388608.0f);
  const uint32_t tiny = detail::MaskOf(bits < 0x00800000u);
  const uint32_t normal = (raised & tiny) | (bits & ~tiny);
  const auto bias = static_cast<int32_t>(tiny & 23u);
  // The mantissa is taken from [sqrt(1/2), sqrt(2)), so that results near zero lose nothing.
  const int32_t exponent = static_cast<int32_t>(normal - 0x3f3504f3u) >> 23;
  const float rest = detail::MathFloatOf(normal - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  float series = -1.0994928e-1f;
  series = series * rest + 1.8617463e-1f;
  series = series * rest - 1.910627e-1f;
  series = series * rest + 2.0460066e-1f;
  series = series * rest - 2.3961742e-1f;
  series = series * rest + 2.885674e-1f;
  series = series * rest - 3.6069664e-1f;
  series = series * rest + 4.8089823e-1f;
  series = series * rest - 7.2134733e-1f;
  series = series * rest + 1.442695e0f;
  const float logarithm = series * rest + static_cast<float>(exponent - bias);
  // Infinity stays; what lies above it as an unsigned number is NaN or negative; zeros come last.
  const uint32_t special = detail::MaskOf(bits >= 0x7f800000u);
  const uint32_t nan = detail::MaskOf(bits > 0x7f800000u) & 0x7fffffffu;
  const uint32_t zero = detail::MaskOf((bits & 0x7fffffffu) == 0);
  const uint32_t number =
      (detail::MathBitsOf(logarithm) & ~special) | (special & 0x7f800000u) | nan;
  return detail::MathFloatOf((number & ~zero) | (zero & 0xff800000u));
}

// x / (1 + e^-x). Minus infinity gives NaN, as the quotient of infinities is.
MOE_EP_MATH float Silu(float x) { return x / (1.0f + Exp(-x)); }

}  // namespace moe_ep
