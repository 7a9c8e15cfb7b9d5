// Small things that the threads of a warp do together.
#pragma once

#include <cstdint>

#include "moe_ep/cuda/lanes.cuh"

namespace moe_ep::cuda {

inline constexpr int kWarp = kLanes;

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ __forceinline__ int WarpOfBlock() { return static_cast<int>(threadIdx.x / kWarp); }
__device__ __forceinline__ uint32_t LanesBelow(int lane) { return (1u << lane) - 1u; }

// combine(a, b) of all lanes' values, in every lane. `combine` is associative and commutative.
template <typename T, typename Combine>
__device__ __forceinline__ T ReduceLanes(T value, Combine combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

}  // namespace moe_ep::cuda
