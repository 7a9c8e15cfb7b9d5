// What getDispatchLayout fills, on any device. Definitions of all outputs: README.md and
// src/reference.
#pragma once

#include <cstdint>

#include "moe_ep/layout/placement.h"

namespace moe_ep {

struct DispatchLayout {
  ExpertPlacement placement;
  int64_t num_tokens;
  int64_t num_topk;
  int64_t ranks_per_node;  // 0: no count per node is wanted
  int32_t* num_tokens_per_rank;
  int32_t* num_tokens_per_rdma_rank;  // null when not wanted
  int32_t* num_tokens_per_expert;
  uint8_t* is_token_in_rank;

  MOE_EP_HOST_DEVICE int64_t num_nodes() const {
    return ranks_per_node == 0 ? 0 : (placement.ranks + ranks_per_node - 1) / ranks_per_node;
  }
};

}  // namespace moe_ep
