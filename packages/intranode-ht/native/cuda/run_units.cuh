// Work on the rows that a rank has of all ranks: runs of their tokens, in turn.
#pragma once

#include "cuda/device_buffer.cuh"

namespace moe_ep::cuda {

// Unit n is a run of tokens of one rank. Runs ascend, so that what is ready first is taken first. A
// warp makes and asks it.
class RunUnits {
 public:
  // `tokens_of_lane`: tokens of the rank with the lane's number; 0 for lanes that stand for none.
  __device__ RunUnits(const DeviceBuffer& buffer, int64_t tokens_of_lane)
      : tokens_of_lane_(tokens_of_lane), ranks_(buffer.ranks()), rank_(buffer.rank()) {
    int64_t most = tokens_of_lane;
    for (int other = kLanes / 2; other > 0; other /= 2)
      most = max(most, __shfl_xor_sync(kAllLanes, most, other));
    count_ = (most + kRunTokens - 1) / kRunTokens * ranks_;
  }

  __device__ int64_t count() const { return count_; }
  __device__ int64_t Run(int64_t unit) const { return unit / ranks_; }
  // Not all ranks begin with the same one.
  __device__ int Source(int64_t unit) const {
    return static_cast<int>((unit % ranks_ + rank_) % ranks_);
  }
  // Tokens of a unit: none where the rank has fewer runs.
  __device__ int64_t Tokens(int64_t unit) const {
    const int64_t all = __shfl_sync(kAllLanes, tokens_of_lane_, Source(unit));
    return min(all - Run(unit) * kRunTokens, kRunTokens);
  }
  // This unit or the next one after so many steps that has tokens.
  __device__ int64_t FirstFrom(int64_t unit, int64_t step) const {
    while (unit < count() && Tokens(unit) <= 0) unit += step;
    return unit;
  }

 private:
  int64_t tokens_of_lane_;
  int64_t count_;
  int ranks_;
  int rank_;
};

}  // namespace moe_ep::cuda
