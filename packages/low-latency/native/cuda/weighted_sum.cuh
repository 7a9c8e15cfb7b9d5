// The weighted sum of bf16 rows, as both ends of combine define it: f32 products and additions in
// order, the first product starting the sum, rounded once.
#pragma once

#include <cstdint>

#include "cuda/device_buffer.cuh"
#include "moe_ep/quant/lane_vector.cuh"

namespace moe_ep::cuda {

// `row_of(i)` and `weight_of(i)` give the terms, the same for all threads of the block, which all
// call it. `kWeighted` false: the rows themselves are added.
template <bool kWeighted, typename RowOf, typename WeightOf>
__device__ void SumRows(int count, int64_t columns, uint16_t* out, const RowOf& row_of,
                        const WeightOf& weight_of) {
  for (int64_t at = threadIdx.x; at < columns / 8; at += kThreads) {
    float sum[8] = {};
    for (int i = 0; i < count; ++i) {
      const uint4 v = __ldcg(reinterpret_cast<const uint4*>(row_of(i)) + at);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      const float weight = kWeighted ? weight_of(i) : 1.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float low, high;
        FloatsOfPair<BF16Element>(words[j], low, high);
        if constexpr (kWeighted) {
          low = __fmul_rn(low, weight);
          high = __fmul_rn(high, weight);
        }
        sum[2 * j] = i == 0 ? low : __fadd_rn(sum[2 * j], low);
        sum[2 * j + 1] = i == 0 ? high : __fadd_rn(sum[2 * j + 1], high);
      }
    }
    uint4 v;
    v.x = PairOfFloats<BF16Element>(sum[0], sum[1]);
    v.y = PairOfFloats<BF16Element>(sum[2], sum[3]);
    v.z = PairOfFloats<BF16Element>(sum[4], sum[5]);
    v.w = PairOfFloats<BF16Element>(sum[6], sum[7]);
    reinterpret_cast<uint4*>(out)[at] = v;
  }
}

}  // namespace moe_ep::cuda
