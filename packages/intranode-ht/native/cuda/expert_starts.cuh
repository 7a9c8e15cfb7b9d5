// Where the rows of experts begin when each expert's are rounded up to an alignment.
#pragma once

#include "cuda/device_buffer.cuh"

namespace moe_ep::cuda {

// Both below 2^31.
__device__ __forceinline__ int64_t RoundUpRows(int64_t count, int64_t alignment) {
  const auto by = static_cast<uint32_t>(alignment);
  return int64_t{(static_cast<uint32_t>(count) + by - 1) / by} * by;
}

// Calls then(expert, start, count), a lane for each expert, and gives the rows of all. A warp calls
// it.
template <typename Then>
__device__ int64_t ForEachStart(const int32_t* counts, int experts, int64_t alignment, int lane,
                                const Then& then) {
  int64_t start = 0;
  for (int first = 0; first < experts; first += kLanes) {
    const int expert = first + lane;
    const int32_t count = expert < experts ? counts[expert] : 0;
    const int64_t rows = RoundUpRows(count, alignment);
    const int64_t end = InclusiveSum(rows, lane);
    if (expert < experts) then(expert, start + end - rows, count);
    start += __shfl_sync(kAllLanes, end, kLanes - 1);
  }
  return start;
}

}  // namespace moe_ep::cuda
