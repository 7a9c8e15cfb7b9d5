// Dispatch layouts on the cpu.
#pragma once

#include <cstdint>

#include "dispatch_layout.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cpu {

// Ids must have been checked.
void GetDispatchLayout(const TopkIds& topk_idx, const DispatchLayout& layout);

// out[i][j] = tokens that ranks 0..i send to rank j.
void GetRankPrefixMatrix(const int32_t* num_tokens_per_rank, int64_t ranks, int32_t* out);

// out[r][c] = tokens of channels 0..c that go to rank r.
void GetChannelPrefixMatrix(const uint8_t* is_token_in_rank, int64_t num_tokens, int64_t ranks,
                            int64_t channels, int32_t* out);

}  // namespace moe_ep::cpu
