// Elements to fp8 e4m3 with one scale for all. README.md defines every value. The dequantisation is
// that of a group: DequantizeRowPerGroup with one group.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/lanes.h"

namespace moe_ep {

// amax / 448, at least the smallest normal number so that it has a reciprocal; 1 for zeros.
MOE_EP_LANE float TensorScaleOf(float amax) {
  return amax == 0.0f ? 1.0f : std::max(amax / 448.0f, 0x1p-126f);
}

// values[i] = e4m3(x[i] * reciprocal).
template <typename Element>
MOE_EP_LANE void QuantizeElements(const typename Element::Storage* __restrict x, int64_t count,
                                  float reciprocal, uint8_t* __restrict values) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = lanes::FloatToFp8E4M3(Element::LaneToFloat(x[i]) * reciprocal);
  }
}

}  // namespace moe_ep
