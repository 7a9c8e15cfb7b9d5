// Rows of bf16 as LogFMT-10: 10 bits an element on a logarithmic scale between the smallest and the
// largest magnitude of 128 elements. README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "moe_ep/math.h"
#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/lanes.h"

namespace moe_ep {

struct LogFmt10 {
  static constexpr int64_t kGroup = 128;
  static constexpr int64_t kGroupBytes = kGroup * 10 / 8;
  static constexpr int32_t kLargestCode = 511;
  static constexpr uint16_t kSign = 0x200;  // with magnitude 0: NaN

  static constexpr int64_t RowBytes(int64_t hidden) {
    return hidden / kGroup * kGroupBytes + (hidden % kGroup * 10 + 7) / 8;
  }
};

namespace detail {

// The logarithmic scale of a group: code c stands for 2^(low + (c - 1) * step).
struct LogScale {
  float low;
  float step;

  static MOE_EP_LANE LogScale Of(uint16_t smallest, uint16_t largest) {
    return Between(Log2(BF16ToFloat(smallest)), Log2(BF16ToFloat(largest)));
  }
  // Of their logarithms.
  static MOE_EP_LANE LogScale Between(float least, float high) {
    const float low = std::max(high - 32.0f, least);
    return {low, (high - low) / 510.0f};
  }
};

MOE_EP_LANE void PackTenBits(const uint16_t* __restrict codes, int64_t count,
                             uint8_t* __restrict packed) {
  const int64_t quads = count / 4;
  for (int64_t q = 0; q < quads; ++q) {
    const uint16_t* c = codes + 4 * q;
    const uint64_t word =
        uint64_t{c[0]} | uint64_t{c[1]} << 10 | uint64_t{c[2]} << 20 | uint64_t{c[3]} << 30;
    std::memcpy(packed + 5 * q, &word, 5);
  }
  uint32_t bits = 0;
  for (int64_t i = 4 * quads; i < count; ++i)
    bits |= static_cast<uint32_t>(codes[i]) << (i % 4 * 10);
  for (int64_t byte = 0; byte < (count % 4 * 10 + 7) / 8; ++byte) {
    packed[5 * quads + byte] = static_cast<uint8_t>(bits >> (8 * byte));
  }
}

MOE_EP_LANE void UnpackTenBits(const uint8_t* __restrict packed, int64_t count,
                               uint16_t* __restrict codes) {
  const int64_t quads = count / 4;
  for (int64_t q = 0; q < quads; ++q) {
    const uint8_t* in = packed + 5 * q;
    uint32_t word;
    std::memcpy(&word, in, 4);
    codes[4 * q] = word & 0x3ff;
    codes[4 * q + 1] = word >> 10 & 0x3ff;
    codes[4 * q + 2] = word >> 20 & 0x3ff;
    codes[4 * q + 3] = static_cast<uint16_t>(word >> 30 | in[4] << 2);
  }
  uint32_t bits = 0;
  for (int64_t byte = 0; byte < (count % 4 * 10 + 7) / 8; ++byte) {
    bits |= static_cast<uint32_t>(packed[5 * quads + byte]) << (8 * byte);
  }
  for (int64_t i = 4 * quads; i < count; ++i) codes[i] = (bits >> (i % 4 * 10)) & 0x3ff;
}

// The smallest and the largest finite magnitude but zero of a group; zeros where there is none.
MOE_EP_LANE void FindLogRange(const uint16_t* __restrict x, int64_t count,
                              uint16_t* __restrict range) {
  constexpr int32_t kInfinity = BF16Element::kInfinity;
  uint16_t largest = 0;
  uint16_t past_smallest = 0;  // from the other end, so that what is passed over is 0 for both
  for (int64_t i = 0; i < count; ++i) {
    // Choices are masks of 16 bits, for which the loop vectorises.
    const auto magnitude = static_cast<uint16_t>(x[i] & BF16Element::kMagnitude);
    const auto number =
        static_cast<uint16_t>(magnitude & (static_cast<int16_t>(magnitude - kInfinity) >> 15));
    const auto from_top =
        static_cast<uint16_t>((kInfinity - number) & (static_cast<int16_t>(-number) >> 15));
    largest = std::max(largest, number);
    past_smallest = std::max(past_smallest, from_top);
  }
  range[0] = largest == 0 ? uint16_t{0} : static_cast<uint16_t>(kInfinity - past_smallest);
  range[1] = largest;
}

// How the elements of a group become codes.
struct LogEncoding {
  float low;
  float inverse;   // of the step; 0 where all magnitudes are equal: code 1
  float rounding;  // the border between two codes is the arithmetic middle of what they stand for

  static MOE_EP_LANE LogEncoding Of(LogScale scale) {
    if (!(scale.step > 0.0f)) return {scale.low, 0.0f, 1.0f};
    const float inverse = 1.0f / scale.step;
    return {scale.low, inverse, 2.0f - Log2((1.0f + Exp2(scale.step)) * 0.5f) * inverse};
  }
};

MOE_EP_LANE void EncodeLogCodes(const uint16_t* __restrict x, int64_t count, LogEncoding encoding,
                                uint8_t* __restrict packed) {
  constexpr int32_t kInfinity = BF16Element::kInfinity;
  uint16_t codes[LogFmt10::kGroup];
  for (int64_t i = 0; i < count; ++i) {
    const int32_t magnitude = x[i] & BF16Element::kMagnitude;
    // Zeros and what is no number take any number's way here and are masked below.
    const auto number = static_cast<uint16_t>(std::clamp(magnitude, 1, kInfinity - 1));
    const float place =
        (Log2(BF16ToFloat(number)) - encoding.low) * encoding.inverse + encoding.rounding;
    // The comparisons turn the NaN of a group without a number into 0.
    const float positive = place > 0.0f ? place : 0.0f;
    const float clamped = positive < 511.0f ? positive : 511.0f;
    const int32_t code = static_cast<int32_t>(clamped) & ~lanes::LessMask(magnitude, 1);
    const int32_t sign = (x[i] >> 6) & LogFmt10::kSign & ~lanes::LessMask(code, 1);
    const int32_t nan = lanes::LessMask(kInfinity - 1, magnitude);
    codes[i] = static_cast<uint16_t>(((code | sign) & ~nan) | (nan & LogFmt10::kSign));
  }
  PackTenBits(codes, count, packed);
}

MOE_EP_LANE void EncodeLogGroup(const uint16_t* __restrict x, int64_t count, uint8_t* packed,
                                uint16_t* range) {
  FindLogRange(x, count, range);
  EncodeLogCodes(x, count, LogEncoding::Of(LogScale::Of(range[0], range[1])), packed);
}

template <typename Element>
MOE_EP_LANE void DecodeLogCodes(const uint8_t* packed, LogScale scale, int64_t count,
                                typename Element::Storage* __restrict out) {
  uint16_t codes[LogFmt10::kGroup];
  UnpackTenBits(packed, count, codes);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t code = codes[i] & LogFmt10::kLargestCode;
    const float place = static_cast<float>(code - 1) * scale.step + scale.low;
    const int32_t bits = lanes::SignedBitsOf(Exp2(place));
    const int32_t sign =
        static_cast<int32_t>(static_cast<uint32_t>(codes[i] & LogFmt10::kSign) << 22);
    const int32_t none = lanes::LessMask(code, 1);
    const int32_t nan = (sign >> 31) & lanes::kMagnitudeMask;
    const int32_t value = ((bits | sign) & ~none) | (nan & none);
    out[i] = Element::LaneFromFloat(lanes::FloatOfSignedBits(value));
  }
}

template <typename Element>
MOE_EP_LANE void DecodeLogGroup(const uint8_t* packed, const uint16_t* range, int64_t count,
                                typename Element::Storage* __restrict out) {
  DecodeLogCodes<Element>(packed, LogScale::Of(range[0], range[1]), count, out);
}

// Calls body(group, its elements) for groups [begin, end) of a row: of whole groups with a
// constant.
template <typename Body>
MOE_EP_LANE void ForLogGroups(int64_t begin, int64_t end, int64_t hidden, const Body& body) {
  for (int64_t g = begin; g < end; ++g) {
    const int64_t left = hidden - g * LogFmt10::kGroup;
    if (left >= LogFmt10::kGroup) {
      body(g, LogFmt10::kGroup);
    } else {
      body(g, left);
    }
  }
}

// Groups whose scales are made together: one after the other, each would wait for its own chain of
// logarithms and divisions.
inline constexpr int64_t kLogGroupsAtOnce = 64;

}  // namespace detail

// Writes RowBytes(hidden) codes and two bf16 (smallest, largest magnitude) a group.
MOE_EP_LANE void QuantizeLogFmt10Row(const uint16_t* x, int64_t hidden, uint8_t* codes,
                                     uint16_t* ranges) {
  constexpr int64_t kGroup = LogFmt10::kGroup;
  constexpr int64_t kAtOnce = detail::kLogGroupsAtOnce;
  const int64_t groups = (hidden + kGroup - 1) / kGroup;
  float low[kAtOnce];
  float step[kAtOnce];
  float inverse[kAtOnce];
  float rounding[kAtOnce];
  for (int64_t begin = 0; begin < groups; begin += kAtOnce) {
    const int64_t count = std::min(kAtOnce, groups - begin);
    detail::ForLogGroups(begin, begin + count, hidden,
                         [&](int64_t g, int64_t elements) MOE_EP_LANE_LAMBDA {
                           detail::FindLogRange(x + g * kGroup, elements, ranges + 2 * g);
                         });
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t* range = ranges + 2 * (begin + i);
      const auto scale = detail::LogScale::Of(range[0], range[1]);
      low[i] = scale.low;
      step[i] = scale.step;
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto encoding = detail::LogEncoding::Of({low[i], step[i]});
      inverse[i] = encoding.inverse;
      rounding[i] = encoding.rounding;
    }
    detail::ForLogGroups(
        begin, begin + count, hidden, [&](int64_t g, int64_t elements) MOE_EP_LANE_LAMBDA {
          const int64_t i = g - begin;
          detail::EncodeLogCodes(x + g * kGroup, elements, {low[i], inverse[i], rounding[i]},
                                 codes + g * LogFmt10::kGroupBytes);
        });
  }
}

template <typename Element>
MOE_EP_LANE void DequantizeLogFmt10Row(const uint8_t* codes, const uint16_t* ranges, int64_t hidden,
                                       typename Element::Storage* out) {
  constexpr int64_t kGroup = LogFmt10::kGroup;
  constexpr int64_t kAtOnce = detail::kLogGroupsAtOnce;
  const int64_t groups = (hidden + kGroup - 1) / kGroup;
  float low[kAtOnce];
  float step[kAtOnce];
  for (int64_t begin = 0; begin < groups; begin += kAtOnce) {
    const int64_t count = std::min(kAtOnce, groups - begin);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t* range = ranges + 2 * (begin + i);
      const auto scale = detail::LogScale::Of(range[0], range[1]);
      low[i] = scale.low;
      step[i] = scale.step;
    }
    detail::ForLogGroups(begin, begin + count, hidden,
                         [&](int64_t g, int64_t elements) MOE_EP_LANE_LAMBDA {
                           detail::DecodeLogCodes<Element>(codes + g * LogFmt10::kGroupBytes,
                                                           {low[g - begin], step[g - begin]},
                                                           elements, out + g * kGroup);
                         });
  }
}

}  // namespace moe_ep
