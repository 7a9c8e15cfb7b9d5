// The weighted sum of bf16 rows, as both ends of combine define it: f32 products and additions in
// order, the first product starting the sum, rounded once.
#pragma once

#include <cstdint>

#include "moe_ep/quant/lane_vector.cuh"

namespace moe_ep::cuda {

// 8 columns in a lane.
class ColumnSum {
 public:
  // `first`: the term starts the sum.
  template <bool kWeighted>
  __device__ __forceinline__ void Add(uint4 row, float weight, bool first) {
    const uint32_t words[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float low, high;
      FloatsOfPair<BF16Element>(words[j], low, high);
      if constexpr (kWeighted) {
        low = __fmul_rn(low, weight);
        high = __fmul_rn(high, weight);
      }
      sum_[2 * j] = first ? low : __fadd_rn(sum_[2 * j], low);
      sum_[2 * j + 1] = first ? high : __fadd_rn(sum_[2 * j + 1], high);
    }
  }
  __device__ __forceinline__ uint4 Rounded() const {
    uint4 v;
    v.x = PairOfFloats<BF16Element>(sum_[0], sum_[1]);
    v.y = PairOfFloats<BF16Element>(sum_[2], sum_[3]);
    v.z = PairOfFloats<BF16Element>(sum_[4], sum_[5]);
    v.w = PairOfFloats<BF16Element>(sum_[6], sum_[7]);
    return v;
  }

 private:
  float sum_[8] = {};
};

}  // namespace moe_ep::cuda
