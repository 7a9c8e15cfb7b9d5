// Rows in small groups of elements: MXFP8, MXFP4 (32 elements, e8m0 scales) and NVFP4 (16 elements,
// e4m3 scales under one f32 scale for the tensor). README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe_ep/quant/fp4.h"
#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/lanes.h"

namespace moe_ep {

// How an e8m0 scale comes from a group's amax. The numbers are shared with src/mx.ts.
enum class MxScaleRule : int32_t {
  kOcp = 0,   // 2^(floor(log2 amax) - largest exponent of the elements)
  kCeil = 1,  // the smallest power of two not below amax / largest element
  kEven = 2,  // kOcp of amax rounded half up to the elements' significand
};

// What elements become. `kNaN`: whether a code of the format is NaN.
struct E4M3Codes {
  static constexpr int kMantissaBits = 3;
  static constexpr int kLargestExponent = 8;
  static constexpr float kLargest = 448.0f;
  static constexpr bool kNaN = true;
  static constexpr int kPerByte = 1;
  static MOE_EP_LANE uint8_t Encode(float value) { return lanes::FloatToFp8E4M3(value); }
  static MOE_EP_LANE float Decode(uint8_t code) { return lanes::Fp8E4M3ToFloat(code); }
};

struct E2M1Codes {
  static constexpr int kMantissaBits = 1;
  static constexpr int kLargestExponent = 2;
  static constexpr float kLargest = 6.0f;
  static constexpr bool kNaN = false;
  static constexpr int kPerByte = 2;
  static MOE_EP_LANE uint8_t Encode(float value) { return lanes::FloatToFp4E2M1(value); }
  static MOE_EP_LANE float Decode(uint8_t code) { return lanes::Fp4E2M1ToFloat(code); }
};

// A group's stored scale and what its elements are multiplied by. An infinite amax gives NaN and 0.
struct SmallGroupScale {
  uint8_t code;
  float factor;
};

template <typename Codes>
struct MxScales {
  static constexpr int kGroup = 32;
  MxScaleRule rule;

  MOE_EP_LANE SmallGroupScale operator()(float amax) const {
    const int32_t bits = lanes::SignedBitsOf(amax);
    int32_t exponent = (bits >> 23) - Codes::kLargestExponent;
    if (rule == MxScaleRule::kEven) {
      exponent = ((bits + (1 << (22 - Codes::kMantissaBits))) >> 23) - Codes::kLargestExponent;
    } else if (rule == MxScaleRule::kCeil) {
      const int32_t least = lanes::SignedBitsOf(amax / Codes::kLargest);
      // Below 2^-126 the steps are no powers of two: 0x00400000 is 2^-127.
      const int32_t subnormal = least > 0x00400000 ? 1 : 0;
      exponent = least < 0x00800000 ? subnormal : (least + 0x7fffff) >> 23;
    }
    if (bits == lanes::kInfinityF32) return {0xff, 0.0f};
    const auto code = static_cast<uint8_t>(std::clamp(exponent, 0, 254));
    return {code, E8M0ToFloat(static_cast<uint8_t>(254 - code))};
  }
};

struct Nvfp4Scales {
  static constexpr int kGroup = 16;
  float global;
  float reciprocal;  // 1 / global

  static MOE_EP_LANE Nvfp4Scales Of(float global) { return {global, 1.0f / global}; }

  MOE_EP_LANE SmallGroupScale operator()(float amax) const {
    if (lanes::SignedBitsOf(amax) == lanes::kInfinityF32) return {0x7f, 0.0f};
    const uint8_t code = lanes::FloatToFp8E4M3(Unrounded(amax));
    return Rounded(code, lanes::Fp8E4M3ToFloat(code));
  }

  // What becomes an e4m3 code, of a finite amax.
  MOE_EP_LANE float Unrounded(float amax) const { return global * amax / 6.0f; }
  // Of that code and what it stands for.
  MOE_EP_LANE SmallGroupScale Rounded(uint8_t code, float decoded) const {
    const float scale = decoded * reciprocal;
    return {code, scale == 0.0f ? 0.0f : 1.0f / scale};
  }
};

namespace detail {

// The amax that a scale is made from: infinity stands for NaN too where no code can tell of it.
template <typename Element, typename Codes>
MOE_EP_LANE float SmallGroupAmax(const typename Element::Storage* x, int64_t count) {
  auto largest = LargestBits<Element>(x, count);
  if (largest > Element::kInfinity) {
    largest = Codes::kNaN ? LargestNumberBits<Element>(x, count) : Element::kInfinity;
  }
  return Element::LaneToFloat(largest);
}

template <typename Element, typename Codes>
MOE_EP_LANE void EncodeSmallGroup(const typename Element::Storage* __restrict x, int64_t count,
                                  float factor, uint8_t* __restrict codes) {
  for (int64_t i = 0; i < count; ++i) codes[i] = Codes::Encode(Element::LaneToFloat(x[i]) * factor);
}

}  // namespace detail

// Writes the row's codes and store(group, scale code) for each of its groups; the last may be
// short.
template <typename Element, typename Codes, typename Scales, typename Store>
MOE_EP_LANE void QuantizeSmallGroups(const typename Element::Storage* __restrict x, int64_t hidden,
                                     Scales scales, uint8_t* __restrict values, Store store) {
  constexpr int64_t kGroup = Scales::kGroup;
  constexpr int64_t kBlock = 32;  // groups
  float factors[kBlock];
  uint8_t codes[kBlock * kGroup];
  for (int64_t begin = 0; begin < hidden; begin += kBlock * kGroup) {
    const int64_t count = std::min(kBlock * kGroup, hidden - begin);
    const int64_t whole = count / kGroup;
    const int64_t rest = count - whole * kGroup;
    for (int64_t g = 0; g < NumGroups(count, kGroup); ++g) {
      const auto* group = x + begin + g * kGroup;
      const float amax = g < whole ? detail::SmallGroupAmax<Element, Codes>(group, kGroup)
                                   : detail::SmallGroupAmax<Element, Codes>(group, rest);
      const SmallGroupScale made = scales(amax);
      factors[g] = made.factor;
      store(begin / kGroup + g, made.code);
    }
    for (int64_t g = 0; g < whole; ++g) {
      detail::EncodeSmallGroup<Element, Codes>(x + begin + g * kGroup, kGroup, factors[g],
                                               codes + g * kGroup);
    }
    if (rest > 0) {
      detail::EncodeSmallGroup<Element, Codes>(x + begin + whole * kGroup, rest, factors[whole],
                                               codes + whole * kGroup);
    }
    if constexpr (Codes::kPerByte == 2) {
      lanes::PackNibbles(codes, count / 2, values + begin / 2);
    } else {
      std::memcpy(values + begin, codes, static_cast<size_t>(count));
    }
  }
}

// out[i] = codes[i] * load(group), one f32 product; then divided by `divisor` where kDivide.
// Rounded to the element type.
template <typename Element, typename Codes, int64_t kGroup, bool kDivide, typename Load>
MOE_EP_LANE void DequantizeSmallGroups(const uint8_t* __restrict values, int64_t hidden,
                                       float divisor, Load load,
                                       typename Element::Storage* __restrict out) {
  for (int64_t begin = 0; begin < hidden; begin += kGroup) {
    const int64_t count = std::min(kGroup, hidden - begin);
    const float scale = load(begin / kGroup);
    uint8_t codes[kGroup];
    if constexpr (Codes::kPerByte == 2) {
      lanes::UnpackNibbles(values + begin / 2, count / 2, codes);
    } else {
      std::memcpy(codes, values + begin, static_cast<size_t>(count));
    }
    for (int64_t i = 0; i < count; ++i) {
      const float product = Codes::Decode(codes[i]) * scale;
      out[begin + i] = Element::LaneFromFloat(kDivide ? product / divisor : product);
    }
  }
}

// Place of the scale of row m, group k in the swizzled layout of NVFP4 scales: tiles of 128 rows
// and 4 groups, `padded_groups` a multiple of 4.
MOE_EP_LANE int64_t SwizzledScaleIndex(int64_t m, int64_t k, int64_t padded_groups) {
  const int64_t tile = m / 128 * (padded_groups / 4) + k / 4;
  return tile * 512 + m % 32 * 16 + m % 128 / 32 * 4 + k % 4;
}

}  // namespace moe_ep
