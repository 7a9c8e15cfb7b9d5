// The first half of a combine: results lie where peers read them, and all ranks know that. Only
// where MOE_EP_CUDA.
#pragma once

#include "calls.h"

namespace moe_ep::cuda {

// Copies rows to where peers read them, unless they are there. `counts`: their sum is the rows that
// peers may ask for; inputs of worst-case size have more.
void StageRows(const Exec& exec, const Tensor& x, uint8_t* to, int64_t row_bytes,
               const int32_t* counts, int64_t num_counts);
// The same for weights of so many rows.
void StageWeights(const Exec& exec, const Tensor& weights, float* to, const int32_t* rows);
// `tokens`: of this rank. The next kernel can be launched to overlap with it.
void MeetForCombine(const Exec& exec, const Buffer& buffer, int64_t slot,
                    const CombineArguments& shared, int64_t tokens, int64_t timeout_ms);

}  // namespace moe_ep::cuda
