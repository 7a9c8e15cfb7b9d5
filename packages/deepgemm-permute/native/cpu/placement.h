// Which row of the contiguous layout each slot gets.
#pragma once

#include <cstdint>

#include "moe_ep/command.h"
#include "moe_ep/deepgemm_permute/local_experts.h"

namespace moe_ep::cpu {

struct PlacementRequest {
  LocalExperts experts;
  int64_t num_tokens;
  int64_t topk;
  int64_t alignment;
  const int32_t*
      reserved;      // rows to keep for each expert, at least its slots; null: as many as its slots
  int64_t capacity;  // rows of the output
};

struct Placement {
  int32_t* row_of_slot;        // [num_tokens, topk], -1 for slots without a local expert
  int64_t* expert_start;       // [num_local], multiples of the alignment
  int32_t* expert_num_tokens;  // [num_local]
};

// Rows inside an expert are ordered by token, then slot. Returns the rows that the experts take
// with their padding; -1 after exec.Fail, with nothing written.
int64_t PlaceRows(const Exec& exec, const PlacementRequest& request, const Placement& placement);

}  // namespace moe_ep::cpu
