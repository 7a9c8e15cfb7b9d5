// fp4 e2m1 in forms that vectorise, equal to moe_ep/dtype.h on all inputs. Two codes a byte, the
// even element in the low half.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "moe_ep/quant/lanes.h"

namespace moe_ep::lanes {

MOE_EP_LANE uint8_t FloatToFp4E2M1(float value) {
  constexpr int32_t kLargest = 0x40c00000;  // 6
  const int32_t bits = SignedBitsOf(value);
  const int32_t magnitude = bits & kMagnitudeMask;
  const int32_t nan = LessMask(kInfinityF32, magnitude);
  const int32_t sign = (bits >> 28) & 0x8 & ~nan;
  return static_cast<uint8_t>(sign | (EncodeMagnitude<2, 1>(std::min(magnitude, kLargest)) & 0x7));
}

MOE_EP_LANE float Fp4E2M1ToFloat(uint8_t code) {
  const int32_t sign = static_cast<int32_t>(static_cast<uint32_t>(code & 0x8) << 28);
  return FloatOfSignedBits(sign | DecodeMagnitude<2, 1>(code & 0x7));
}

// packed[i] = codes[2i] | codes[2i + 1] << 4, on little-endian machines.
MOE_EP_LANE void PackNibbles(const uint8_t* __restrict codes, int64_t bytes,
                             uint8_t* __restrict packed) {
  for (int64_t i = 0; i < bytes; ++i) {
    uint16_t pair;
    std::memcpy(&pair, codes + 2 * i, 2);
    packed[i] = static_cast<uint8_t>(pair | (pair >> 4));
  }
}

MOE_EP_LANE void UnpackNibbles(const uint8_t* __restrict packed, int64_t bytes,
                               uint8_t* __restrict codes) {
  for (int64_t i = 0; i < bytes; ++i) {
    const auto pair = static_cast<uint16_t>((packed[i] & 0xf) | (packed[i] >> 4 << 8));
    std::memcpy(codes + 2 * i, &pair, 2);
  }
}

}  // namespace moe_ep::lanes
