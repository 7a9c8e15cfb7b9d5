// Conversions of one element written so that loops over a row vectorise: choices are masks, never
// branches, and no floating-point operation hangs on a condition. Each equals its namesake in
// moe_ep/dtype.h on all inputs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe_ep/dtype.h"

#if defined(__CUDACC__)
// Kernels use the same functions.
#define MOE_EP_LANE __host__ __device__ __forceinline__
#define MOE_EP_RARE __host__ __device__ __forceinline__
#define MOE_EP_LANE_LAMBDA
#elif defined(__GNUC__)
// Forced into the caller: only there does the code get the instruction set of the caller's
// MOE_EP_CLONES.
#define MOE_EP_LANE inline __attribute__((always_inline))
// Kept out of the callers: rarely run, or too little work to be worth a copy in each.
#define MOE_EP_RARE inline __attribute__((noinline))
#define MOE_EP_LANE_LAMBDA __attribute__((always_inline))
#else
#define MOE_EP_LANE_LAMBDA
#define MOE_EP_LANE inline
#define MOE_EP_RARE inline
#endif

namespace moe_ep::lanes {

inline constexpr int32_t kMagnitudeMask = 0x7fffffff;
inline constexpr int32_t kInfinityF32 = 0x7f800000;

MOE_EP_LANE int32_t SignedBitsOf(float value) { return static_cast<int32_t>(BitsOfFloat(value)); }
MOE_EP_LANE float FloatOfSignedBits(int32_t bits) {
  return FloatOfBits(static_cast<uint32_t>(bits));
}

// All ones where a < b. Both lie in [0, 2^31), so the difference does not overflow.
MOE_EP_LANE int32_t LessMask(int32_t a, int32_t b) { return (a - b) >> 31; }

// A word whose low 1 + kExponentBits + kMantissaBits bits are the code of a finite magnitude,
// rounded to nearest even; the bits above are left over for the caller to cut. The sum of the
// magnitude and a power of two whose unit in the last place is the format's step at that magnitude
// is rounded by the hardware, and its mantissa counts the steps. The mantissa starts at the
// format's bias instead of 0, which makes up for the exponent's other bias. A magnitude of the
// binade past the largest gives the code past the largest.
template <int kExponentBits, int kMantissaBits>
MOE_EP_LANE int32_t EncodeMagnitude(int32_t magnitude) {
  constexpr int32_t kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr int32_t kShift = 23 - kMantissaBits;
  constexpr int32_t kSmallestNormal = (128 - kBias) << 23;  // below it the step stays the same
  constexpr int32_t kPower = (kShift << 23) + (kBias << kMantissaBits);
  const int32_t exponent = std::max(magnitude, kSmallestNormal) & kInfinityF32;
  const float sum = FloatOfSignedBits(magnitude) + FloatOfSignedBits(exponent + kPower);
  return SignedBitsOf(sum) + (exponent >> kShift);
}

// The f32 bits of the finite magnitude with this code: the inverse of EncodeMagnitude.
template <int kExponentBits, int kMantissaBits>
MOE_EP_LANE int32_t DecodeMagnitude(int32_t code) {
  constexpr int32_t kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr int32_t kSmallestNormal = (128 - kBias) << 23;
  // A subnormal code is read as the mantissa of the first normal binade, and the leading one is
  // then taken away.
  const int32_t subnormal = LessMask(code, 1 << kMantissaBits);
  const int32_t bits =
      (code << (23 - kMantissaBits)) + ((127 - kBias) << 23) + (subnormal & (1 << 23));
  return SignedBitsOf(FloatOfSignedBits(bits) - FloatOfSignedBits(subnormal & kSmallestNormal));
}

MOE_EP_LANE uint8_t FloatToFp8E4M3(float value) {
  constexpr int32_t kLargest = 0x43e00000;  // 448
  const int32_t bits = SignedBitsOf(value);
  const int32_t magnitude = bits & kMagnitudeMask;
  const int32_t nan = LessMask(kInfinityF32, magnitude);
  const int32_t code = ((bits >> 24) & 0x80) | EncodeMagnitude<4, 3>(std::min(magnitude, kLargest));
  return static_cast<uint8_t>((code & ~nan) | (nan & 0x7f));
}

// For all codes but NaN.
MOE_EP_LANE float NumericFp8E4M3ToFloat(uint8_t code) {
  const int32_t sign = static_cast<int32_t>(static_cast<uint32_t>(code) << 24) & ~kMagnitudeMask;
  return FloatOfSignedBits(sign | DecodeMagnitude<4, 3>(code & 0x7f));
}

MOE_EP_LANE float Fp8E4M3ToFloat(uint8_t code) {
  const int32_t magnitude = code & 0x7f;
  const int32_t nan = LessMask(0x7e, magnitude);
  const int32_t sign =
      static_cast<int32_t>(static_cast<uint32_t>(code) << 24) & ~nan & ~kMagnitudeMask;
  return FloatOfSignedBits(sign | (nan & kMagnitudeMask) | DecodeMagnitude<4, 3>(magnitude));
}

// For infinities and numbers.
MOE_EP_LANE uint16_t NumberToBF16(float value) {
  const uint32_t bits = BitsOfFloat(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// For infinities and numbers.
MOE_EP_LANE uint16_t NumberToF16(float value) {
  constexpr int32_t kOverflow = 0x47800000;  // 65536: its code is that of infinity
  const int32_t bits = SignedBitsOf(value);
  const int32_t finite = std::min(bits & kMagnitudeMask, kOverflow);
  return static_cast<uint16_t>(((bits >> 16) & 0x8000) | EncodeMagnitude<5, 10>(finite));
}

MOE_EP_LANE uint16_t FloatToF16(float value) {
  const int32_t nan = LessMask(kInfinityF32, SignedBitsOf(value) & kMagnitudeMask);
  return static_cast<uint16_t>((NumberToF16(value) & ~nan) | (nan & 0x7fff));
}

// For neither infinities nor NaN.
MOE_EP_LANE float FiniteF16ToFloat(uint16_t code) {
  const int32_t sign = static_cast<int32_t>(static_cast<uint32_t>(code) << 16) & ~kMagnitudeMask;
  return FloatOfSignedBits(sign | DecodeMagnitude<5, 10>(code & 0x7fff));
}

MOE_EP_LANE float F16ToFloat(uint16_t code) {
  const int32_t magnitude = code & 0x7fff;
  const int32_t infinite = LessMask(0x7bff, magnitude);
  const int32_t nan = LessMask(0x7c00, magnitude);
  const int32_t sign = static_cast<int32_t>(static_cast<uint32_t>(code) << 16) & ~kMagnitudeMask;
  const int32_t number =
      (DecodeMagnitude<5, 10>(magnitude) & ~infinite) | (infinite & kInfinityF32);
  return FloatOfSignedBits(((sign | number) & ~nan) | (nan & kMagnitudeMask));
}

}  // namespace moe_ep::lanes
