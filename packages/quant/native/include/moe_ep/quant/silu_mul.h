// silu(gate) * up for one row of gates followed by as many ups. README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <cstdint>
#include <limits>

#include "moe_ep/math.h"
#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/lanes.h"

namespace moe_ep {

// out[i] = round(round(silu(min(gate, limit))) * clamp(up, +-limit)), rounded to the element type
// both times; NaN stays NaN. `limit` must be an element's value; infinity limits nothing.
template <typename Element>
MOE_EP_LANE void SiluMulRow(const typename Element::Storage* __restrict x, int64_t hidden,
                            float limit, typename Element::Storage* __restrict out) {
  for (int64_t i = 0; i < hidden; ++i) {
    const float gate = Element::LaneToFloat(x[i]);
    const float up = Element::LaneToFloat(x[hidden + i]);
    const float silu = Silu(gate > limit ? limit : gate);
    const float factor = detail::ClampNumber(up, -limit, limit);
    out[i] = Element::LaneFromFloat(Element::LaneToFloat(Element::LaneFromFloat(silu)) * factor);
  }
}

// The same in f32 throughout.
template <typename Element>
MOE_EP_LANE void SiluMulRowF32(const typename Element::Storage* __restrict x, int64_t hidden,
                               float limit, uint32_t* __restrict out) {
  for (int64_t i = 0; i < hidden; ++i) {
    const float gate = Element::LaneToFloat(x[i]);
    const float up = Element::LaneToFloat(x[hidden + i]);
    const float silu = Silu(gate > limit ? limit : gate);
    out[i] = BitsOfFloat(silu * detail::ClampNumber(up, -limit, limit));
  }
}

}  // namespace moe_ep
