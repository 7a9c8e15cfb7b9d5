// The threads of a warp.
#pragma once

#include <cstdint>

namespace moe_ep::cuda {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

// The sum of the values of this lane and those below it. A warp calls it.
template <typename T>
__device__ __forceinline__ T InclusiveSum(T value, int lane) {
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

}  // namespace moe_ep::cuda
