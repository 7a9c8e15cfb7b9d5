// Codes in registers back to elements: the device's form of group_dequant.h, equal bit for bit.
#pragma once

#include <cstdint>

#include "moe_ep/quant/lane_vector.cuh"

namespace moe_ep::cuda {

// One product each, rounded to the element type; NaN is canonical.
template <typename Element>
__device__ __forceinline__ LaneVector<Element, kLoadElements<Element>> DequantizeE4M3(
    const uint32_t (&codes)[kLoadElements<Element> / 4], float scale) {
  constexpr int kCount = kLoadElements<Element>;
  float values[kCount];
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) {
    float quad[4];
    FloatsOfE4M3(codes[i], quad);
#pragma unroll
    for (int j = 0; j < 4; ++j) values[4 * i + j] = quad[j] * scale;
  }
  return LaneVector<Element, kCount>::OfFloats(values);
}

}  // namespace moe_ep::cuda
