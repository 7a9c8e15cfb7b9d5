// The element types that rows to quantise can have.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"
#include "moe_ep/quant/lanes.h"

namespace moe_ep {

// Magnitude bits rise with the magnitude, so a largest magnitude is an integer maximum.
// `kPlainLimit`: smaller magnitudes take the fast path of group_quant.h; reciprocals of the scales
// of larger ones than 2^100 lose bits to subnormals. `FiniteToFloat` and `FromNumber` are the
// quicker forms for what is neither infinite nor NaN, and for what is not NaN; `LaneToFloat` and
// `LaneFromFloat` take everything and vectorise.
struct BF16Element {
  using Storage = uint16_t;
  static constexpr int kSignificandBits = 8;
  static constexpr Storage kMagnitude = 0x7fff;
  static constexpr Storage kInfinity = 0x7f80;
  static constexpr Storage kPlainLimit = 0x7180;  // 2^100
  static MOE_EP_LANE float ToFloat(Storage bits) { return BF16ToFloat(bits); }
  static MOE_EP_LANE float FiniteToFloat(Storage bits) { return BF16ToFloat(bits); }
  static MOE_EP_LANE Storage FromFloat(float value) { return FloatToBF16(value); }
  static MOE_EP_LANE Storage FromNumber(float value) { return lanes::NumberToBF16(value); }
  static MOE_EP_LANE float LaneToFloat(Storage bits) { return BF16ToFloat(bits); }
  static MOE_EP_LANE Storage LaneFromFloat(float value) { return FloatToBF16(value); }
};

struct F16Element {
  using Storage = uint16_t;
  static constexpr int kSignificandBits = 11;
  static constexpr Storage kMagnitude = 0x7fff;
  static constexpr Storage kInfinity = 0x7c00;
  static constexpr Storage kPlainLimit = kInfinity;
  static MOE_EP_LANE float ToFloat(Storage bits) { return F16ToFloat(bits); }
  static MOE_EP_LANE float FiniteToFloat(Storage bits) { return lanes::FiniteF16ToFloat(bits); }
  static MOE_EP_LANE Storage FromFloat(float value) { return lanes::FloatToF16(value); }
  static MOE_EP_LANE Storage FromNumber(float value) { return lanes::NumberToF16(value); }
  static MOE_EP_LANE float LaneToFloat(Storage bits) { return lanes::F16ToFloat(bits); }
  static MOE_EP_LANE Storage LaneFromFloat(float value) { return lanes::FloatToF16(value); }
};

struct F32Element {
  using Storage = uint32_t;
  static constexpr int kSignificandBits = 24;
  static constexpr Storage kMagnitude = 0x7fffffffu;
  static constexpr Storage kInfinity = 0x7f800000u;
  static constexpr Storage kPlainLimit = 0x71800000u;  // 2^100
  static MOE_EP_LANE float ToFloat(Storage bits) { return FloatOfBits(bits); }
  static MOE_EP_LANE float FiniteToFloat(Storage bits) { return FloatOfBits(bits); }
  static MOE_EP_LANE Storage FromFloat(float value) { return CanonicalF32Bits(value); }
  static MOE_EP_LANE Storage FromNumber(float value) { return BitsOfFloat(value); }
  static MOE_EP_LANE float LaneToFloat(Storage bits) { return FloatOfBits(bits); }
  static MOE_EP_LANE Storage LaneFromFloat(float value) { return CanonicalF32Bits(value); }
};

}  // namespace moe_ep
