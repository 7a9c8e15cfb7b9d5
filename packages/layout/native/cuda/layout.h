// Dispatch layouts on a cuda device: each function launches one kernel. Only where MOE_EP_CUDA.
#pragma once

#include <cstdint>

#include "dispatch_layout.h"
#include "moe_ep/command.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {

// Checks the ids, too: the lowest that is out of range fails the stream, and nothing is written.
void GetDispatchLayout(const Exec& exec, const TopkIds& topk_idx, const DispatchLayout& layout);

// As cpu/layout.h.
void GetRankPrefixMatrix(const Exec& exec, const int32_t* num_tokens_per_rank, int64_t ranks,
                         int32_t* out);
void GetChannelPrefixMatrix(const Exec& exec, const uint8_t* is_token_in_rank, int64_t num_tokens,
                            int64_t ranks, int64_t channels, int32_t* out);

}  // namespace moe_ep::cuda
