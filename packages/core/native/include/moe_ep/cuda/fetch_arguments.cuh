// A kernel's arguments before they are needed.
#pragma once

#include <cstdint>

#include "moe_ep/cuda/lanes.cuh"

namespace moe_ep::cuda {

// Brings a kernel's arguments near, a line for each warp and then the next: a launch has them far
// away, and each line that is met for the first time costs its reader a wait. All threads of the
// block call it, before they wait for the kernel before.
template <typename Arguments>
__device__ __forceinline__ void FetchArguments(const Arguments& arguments) {
  constexpr int kLine = 64;
  const auto* const bytes = reinterpret_cast<const char*>(&arguments);
#pragma unroll 1
  for (int line = threadIdx.x / kLanes; line * kLine < static_cast<int>(sizeof(Arguments));
       line += static_cast<int>(blockDim.x) / kLanes) {
    const auto word = *reinterpret_cast<const uint32_t*>(bytes + line * kLine);
    asm volatile("" ::"r"(word));
  }
}

}  // namespace moe_ep::cuda
