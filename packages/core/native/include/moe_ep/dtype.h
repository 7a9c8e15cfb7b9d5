// Element types and their conversions: round to nearest even, fp8 and fp4 saturate, one canonical
// NaN a format (all mantissa bits set, sign clear), as src/float-formats.ts defines them.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "moe_ep/host_device.h"

namespace moe_ep {

// Values are part of the native interface; src/dtype.ts carries the same numbers.
enum class DType : int32_t {
  kF32 = 0,
  kF16 = 1,
  kBF16 = 2,
  kFp8E4M3 = 3,
  kFp8E5M2 = 4,
  kFp4E2M1 = 5,
  kE8M0 = 6,
  kI32 = 7,
  kI64 = 8,
  kU8 = 9,
  kBool = 10,
};

MOE_EP_CONSTEXPR int BitsOf(DType dtype) {
  switch (dtype) {
    case DType::kI64:
      return 64;
    case DType::kF32:
    case DType::kI32:
      return 32;
    case DType::kF16:
    case DType::kBF16:
      return 16;
    case DType::kFp4E2M1:
      return 4;
    default:
      return 8;
  }
}

inline constexpr uint32_t kCanonicalNaNF32 = 0x7fffffffu;

MOE_EP_HOST_DEVICE uint32_t BitsOfFloat(float value) { return std::bit_cast<uint32_t>(value); }
MOE_EP_HOST_DEVICE float FloatOfBits(uint32_t bits) { return std::bit_cast<float>(bits); }
MOE_EP_HOST_DEVICE bool IsNaNBits(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

// Branch-free so that loops over rows vectorise.
MOE_EP_HOST_DEVICE uint16_t FloatToBF16(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(IsNaNBits(bits) ? 0x7fffu : rounded);
}
MOE_EP_HOST_DEVICE float BF16ToFloat(uint16_t bits) {
  return FloatOfBits(static_cast<uint32_t>(bits) << 16);
}

MOE_EP_HOST_DEVICE uint32_t CanonicalF32Bits(float value) {
  const uint32_t bits = BitsOfFloat(value);
  return IsNaNBits(bits) ? kCanonicalNaNF32 : bits;
}

namespace detail {

// Rounds |value| into a format of `kExponentBits` and `kMantissaBits`; the caller adds the sign and
// treats overflow. Adding a power of two whose unit in the last place is the format's step makes
// the hardware round for us.
template <int kExponentBits, int kMantissaBits>
MOE_EP_HOST_DEVICE uint32_t RoundMagnitude(uint32_t magnitude) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr int kShift = 23 - kMantissaBits;
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(127 + 1 - kBias) << 23;
  if (magnitude < kSmallestNormal) {
    constexpr uint32_t kMagic = static_cast<uint32_t>(127 + 1 - kBias + kShift) << 23;
    return BitsOfFloat(FloatOfBits(magnitude) + FloatOfBits(kMagic)) - kMagic;
  }
  const uint32_t odd = (magnitude >> kShift) & 1u;
  const uint32_t rounded = (magnitude + ((1u << (kShift - 1)) - 1u) + odd) >> kShift;
  return rounded - (static_cast<uint32_t>(127 - kBias) << kMantissaBits);
}

}  // namespace detail

MOE_EP_HOST_DEVICE uint16_t FloatToF16(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and above
  return static_cast<uint16_t>(sign | detail::RoundMagnitude<5, 10>(magnitude));
}

MOE_EP_HOST_DEVICE float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return FloatOfBits(magnitude > 0x7c00u ? kCanonicalNaNF32 : sign | 0x7f800000u);
  if (magnitude < 0x0400u) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return FloatOfBits(sign | BitsOfFloat(value));
  }
  return FloatOfBits(sign | ((magnitude << 13) + (static_cast<uint32_t>(127 - 15) << 23)));
}

MOE_EP_HOST_DEVICE uint8_t FloatToFp8E4M3(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448 and above
  return static_cast<uint8_t>(sign | detail::RoundMagnitude<4, 3>(magnitude));
}

MOE_EP_HOST_DEVICE float Fp8E4M3ToFloat(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return FloatOfBits(kCanonicalNaNF32);
  if (magnitude < 0x08u)
    return FloatOfBits(sign | BitsOfFloat(static_cast<float>(magnitude) * 0x1p-9f));
  return FloatOfBits(sign | ((magnitude << 20) + (static_cast<uint32_t>(127 - 7) << 23)));
}

MOE_EP_HOST_DEVICE uint8_t FloatToFp8E5M2(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  if (magnitude >= 0x47600000u) return static_cast<uint8_t>(sign | 0x7bu);  // 57344 and above
  return static_cast<uint8_t>(sign | detail::RoundMagnitude<5, 2>(magnitude));
}

MOE_EP_HOST_DEVICE float Fp8E5M2ToFloat(uint8_t bits) {
  return F16ToFloat(static_cast<uint16_t>(bits << 8));
}

MOE_EP_HOST_DEVICE uint8_t FloatToFp4E2M1(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7;
  const uint32_t sign = (bits >> 28) & 0x8u;
  if (magnitude > 0x40a00000u)
    return static_cast<uint8_t>(sign | 0x7u);  // past 5, which ties to the even 4
  return static_cast<uint8_t>(sign | detail::RoundMagnitude<2, 1>(magnitude));
}

MOE_EP_HOST_DEVICE float E8M0ToFloat(uint8_t bits) {
  if (bits == 0xff) return FloatOfBits(kCanonicalNaNF32);
  return FloatOfBits(bits == 0 ? 0x00400000u : static_cast<uint32_t>(bits) << 23);
}

}  // namespace moe_ep
