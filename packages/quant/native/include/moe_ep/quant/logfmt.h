// Rows of bf16 as LogFMT-10: 10 bits an element on a logarithmic scale between the smallest and the
// largest magnitude of 128 elements. README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <cstdint>

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
    const float high = Log2(BF16ToFloat(largest));
    const float least = Log2(BF16ToFloat(smallest));
    const float low = std::max(high - 32.0f, least);
    return {low, (high - low) / 510.0f};
  }
};

MOE_EP_LANE void PackTenBits(const uint16_t* __restrict codes, int64_t count,
                             uint8_t* __restrict packed) {
  const int64_t quads = count / 4;
  for (int64_t q = 0; q < quads; ++q) {
    const uint16_t* c = codes + 4 * q;
    uint8_t* out = packed + 5 * q;
    out[0] = static_cast<uint8_t>(c[0]);
    out[1] = static_cast<uint8_t>(c[0] >> 8 | c[1] << 2);
    out[2] = static_cast<uint8_t>(c[1] >> 6 | c[2] << 4);
    out[3] = static_cast<uint8_t>(c[2] >> 4 | c[3] << 6);
    out[4] = static_cast<uint8_t>(c[3] >> 2);
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
    uint16_t* c = codes + 4 * q;
    c[0] = static_cast<uint16_t>((in[0] | in[1] << 8) & 0x3ff);
    c[1] = static_cast<uint16_t>((in[1] >> 2 | in[2] << 6) & 0x3ff);
    c[2] = static_cast<uint16_t>((in[2] >> 4 | in[3] << 4) & 0x3ff);
    c[3] = static_cast<uint16_t>(in[3] >> 6 | in[4] << 2);
  }
  uint32_t bits = 0;
  for (int64_t byte = 0; byte < (count % 4 * 10 + 7) / 8; ++byte) {
    bits |= static_cast<uint32_t>(packed[5 * quads + byte]) << (8 * byte);
  }
  for (int64_t i = 4 * quads; i < count; ++i) codes[i] = (bits >> (i % 4 * 10)) & 0x3ff;
}

MOE_EP_LANE void EncodeLogGroup(const uint16_t* __restrict x, int64_t count, uint8_t* packed,
                                uint16_t* range) {
  constexpr int32_t kInfinity = BF16Element::kInfinity;
  uint16_t largest = 0;
  uint16_t past_smallest = 0;  // from the other end, so that what is passed over is 0 for both
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t magnitude = x[i] & BF16Element::kMagnitude;
    const uint16_t number = magnitude >= BF16Element::kInfinity ? uint16_t{0} : magnitude;
    const auto from_top = static_cast<uint16_t>(kInfinity - number);
    largest = std::max(largest, number);
    past_smallest = std::max(past_smallest, number == 0 ? uint16_t{0} : from_top);
  }
  const uint16_t smallest =
      largest == 0 ? uint16_t{0} : static_cast<uint16_t>(kInfinity - past_smallest);
  range[0] = smallest;
  range[1] = largest;
  const LogScale scale = LogScale::Of(smallest, largest);
  float inverse = 0.0f;
  float rounding = 1.0f;  // all magnitudes are equal: code 1
  if (scale.step > 0.0f) {
    inverse = 1.0f / scale.step;
    // The border between two codes is the arithmetic middle of what they stand for.
    rounding = 2.0f - Log2((1.0f + Exp2(scale.step)) * 0.5f) * inverse;
  }
  uint16_t codes[LogFmt10::kGroup];
  for (int64_t i = 0; i < count; ++i) {
    const int32_t magnitude = x[i] & BF16Element::kMagnitude;
    // Zeros and what is no number take any number's way here and are masked below.
    const auto number = static_cast<uint16_t>(std::clamp(magnitude, 1, kInfinity - 1));
    const float place = (Log2(BF16ToFloat(number)) - scale.low) * inverse + rounding;
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

template <typename Element>
MOE_EP_LANE void DecodeLogGroup(const uint8_t* packed, const uint16_t* range, int64_t count,
                                typename Element::Storage* __restrict out) {
  uint16_t codes[LogFmt10::kGroup];
  UnpackTenBits(packed, count, codes);
  const LogScale scale = LogScale::Of(range[0], range[1]);
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

}  // namespace detail

// Writes RowBytes(hidden) codes and two bf16 (smallest, largest magnitude) a group.
MOE_EP_LANE void QuantizeLogFmt10Row(const uint16_t* x, int64_t hidden, uint8_t* codes,
                                     uint16_t* ranges) {
  for (int64_t begin = 0, g = 0; begin < hidden; begin += LogFmt10::kGroup, ++g) {
    uint8_t* packed = codes + g * LogFmt10::kGroupBytes;
    if (hidden - begin >= LogFmt10::kGroup) {
      detail::EncodeLogGroup(x + begin, LogFmt10::kGroup, packed, ranges + 2 * g);
    } else {
      detail::EncodeLogGroup(x + begin, hidden - begin, packed, ranges + 2 * g);
    }
  }
}

template <typename Element>
MOE_EP_LANE void DequantizeLogFmt10Row(const uint8_t* codes, const uint16_t* ranges, int64_t hidden,
                                       typename Element::Storage* out) {
  for (int64_t begin = 0, g = 0; begin < hidden; begin += LogFmt10::kGroup, ++g) {
    const uint8_t* packed = codes + g * LogFmt10::kGroupBytes;
    const int64_t count = std::min(LogFmt10::kGroup, hidden - begin);
    detail::DecodeLogGroup<Element>(packed, ranges + 2 * g, count, out + begin);
  }
}

}  // namespace moe_ep
