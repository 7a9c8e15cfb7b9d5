// Dispatch layouts on the cpu. Definitions of all outputs: README.md and src/reference.
#pragma once

#include <cstdint>

#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cpu {

struct DispatchLayout {
  ExpertPlacement placement;
  int64_t num_tokens;
  int64_t num_topk;
  int64_t ranks_per_node;  // 0: no count per node is wanted
  int32_t* num_tokens_per_rank;
  int32_t* num_tokens_per_rdma_rank;  // null when not wanted
  int32_t* num_tokens_per_expert;
  uint8_t* is_token_in_rank;
};

// Ids must have been checked.
void GetDispatchLayout(const TopkIds& topk_idx, const DispatchLayout& layout);

// out[i][j] = tokens that ranks 0..i send to rank j.
void GetRankPrefixMatrix(const int32_t* num_tokens_per_rank, int64_t ranks, int32_t* out);

// out[r][c] = tokens of channels 0..c that go to rank r.
void GetChannelPrefixMatrix(const uint8_t* is_token_in_rank, int64_t num_tokens, int64_t ranks,
                            int64_t channels, int32_t* out);

}  // namespace moe_ep::cpu
