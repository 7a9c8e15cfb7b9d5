// The largest of the values of a block's threads.
#pragma once

#include <cstdint>

#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

// All threads call it, any number of times, and get the same.
template <int kThreads>
__device__ __forceinline__ uint32_t BlockMax(uint32_t value) {
  __shared__ uint32_t largest[kThreads / 32];
  __syncthreads();  // what an earlier call left was read
  const uint32_t of_warp = __reduce_max_sync(kFullWarp, value);
  if (LaneOfWarp() == 0) largest[threadIdx.x / 32] = of_warp;
  __syncthreads();
  uint32_t result = largest[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) result = result > largest[i] ? result : largest[i];
  return result;
}

}  // namespace moe_ep::cuda
