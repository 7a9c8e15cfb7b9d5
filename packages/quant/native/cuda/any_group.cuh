// Groups of any size at any place, a warp for each: what rows without the alignment for vectors
// take. Elements are read twice.
#pragma once

#include <cstdint>

#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/quant/group_quant.cuh"

namespace moe_ep::cuda {

// Quantises `count` elements value(0), value(1)... and returns the scale.
template <Encoding kEncoding, typename Value>
__device__ __forceinline__ float QuantizeAnyGroup(int64_t count, ScaleRule rule, uint8_t* values,
                                                  Value value) {
  const int lane = LaneOfWarp();
  uint32_t largest = 0;
  for (int64_t i = lane; i < count; i += 32) {
    const uint32_t magnitude = BitsOfFloat(value(i)) & 0x7fffffffu;
    if (magnitude <= 0x7f800000u) largest = largest > magnitude ? largest : magnitude;
  }
  const GroupScale made = ScaleFor(rule, FloatOfBits(__reduce_max_sync(kFullWarp, largest)));
  for (int64_t i = lane; i < count; i += 32) {
    const float quotient = moe_ep::detail::Quotient<kEncoding>(value(i), made);
    values[i] = static_cast<uint8_t>(E4M3OfFloats(quotient, 0.0f, 0.0f, 0.0f));
  }
  return made.scale;
}

// One lane writes the scale, and zeroes what a packed row's last word has past the last group.
__device__ __forceinline__ void StoreScaleOf(const ScaleWriter& scales, int64_t row, int64_t group,
                                             float scale) {
  if (LaneOfWarp() != 0) return;
  scales.Store(row, group, scale);
  if (!scales.packed || group + 1 < scales.groups) return;
  for (int64_t past = group + 1; (past & 3) != 0; ++past) scales.Store(row, past, 0.0f);
}

}  // namespace moe_ep::cuda
