// The weighted sum of bf16 rows, as both ends of combine define it: f32 products and additions in
// order, the first product starting the sum, rounded once. A sum begins at -0, to which any number
// can be added without a change.
#pragma once

#include <cstdint>

#include "moe_ep/quant/lane_vector.cuh"

namespace moe_ep::cuda {

// 8 columns in a lane.
class ColumnSum {
 public:
  // A weight of 1 changes nothing.
  __device__ __forceinline__ void Add(uint4 row, float weight) {
    const uint32_t words[4] = {row.x, row.y, row.z, row.w};
    float values[8];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      FloatsOfPair<BF16Element>(words[j], values[2 * j], values[2 * j + 1]);
    Add(values, weight);
  }
  __device__ __forceinline__ void Add(const float (&values)[8], float weight) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      sum_[j] = __fadd_rn(sum_[j], __fmul_rn(values[j], weight));
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
  float sum_[8] = {-0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f, -0.0f};
};

}  // namespace moe_ep::cuda
