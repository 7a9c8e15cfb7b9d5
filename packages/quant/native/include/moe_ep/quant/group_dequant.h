// One row of fp8 e4m3 with one scale for each group back to floats. README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/lanes.h"
#include "moe_ep/quant/scales.h"

namespace moe_ep {
namespace detail {

template <typename Element>
MOE_EP_LANE void DequantizeGroup(const uint8_t* __restrict values, float scale, int64_t count,
                                 typename Element::Storage* __restrict out) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, static_cast<uint8_t>(values[i] & 0x7f));
  const bool finite = (BitsOfFloat(scale) & 0x7fffffffu) < 0x7f800000u;
  if (finite && largest < 0x7f) {  // no product is NaN
    for (int64_t i = 0; i < count; ++i) {
      out[i] = Element::FromNumber(lanes::NumericFp8E4M3ToFloat(values[i]) * scale);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = Element::FromFloat(lanes::Fp8E4M3ToFloat(values[i]) * scale);
    }
  }
}

}  // namespace detail

// out[i] = values[i] * scales[i / group_size]: one f32 product, rounded to the element type; NaN is
// canonical.
template <typename Element>
MOE_EP_LANE void DequantizeRowPerGroup(const uint8_t* values, ScaleRow scales, int64_t hidden,
                                       int64_t group_size, typename Element::Storage* out) {
  const int64_t whole = hidden / group_size;
  if (group_size == 128) {
    for (int64_t g = 0; g < whole; ++g) {
      detail::DequantizeGroup<Element>(values + g * 128, scales.Load(g), 128, out + g * 128);
    }
  } else {
    for (int64_t g = 0; g < whole; ++g) {
      const int64_t at = g * group_size;
      detail::DequantizeGroup<Element>(values + at, scales.Load(g), group_size, out + at);
    }
  }
  const int64_t rest = whole * group_size;
  if (rest < hidden) {
    detail::DequantizeGroup<Element>(values + rest, scales.Load(whole), hidden - rest, out + rest);
  }
}

}  // namespace moe_ep
