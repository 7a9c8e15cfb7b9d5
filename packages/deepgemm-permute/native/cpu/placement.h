// Which row of the layout each slot gets.
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
  int64_t rows_per_expert;  // masked layout: every expert has this many; 0: as many as it needs
  const int32_t*
      reserved;      // rows to keep for each expert, at least its slots; null: as many as its slots
  int64_t capacity;  // rows of the output
  bool foreign_last;  // slots without a local expert are numbered too, behind all rows
};

struct Placement {
  int32_t* row_of_slot;        // [num_tokens, topk], -1 for slots without a local expert
  int64_t* expert_start;       // [num_local + 1]: first row of each expert, then the rows needed
  int32_t* expert_end;         // [num_local]: behind the last row; may be null
  int32_t* expert_num_tokens;  // [num_local]
};

// Rows inside an expert are ordered by token, then slot; foreign ones by global id, token, slot.
// Returns the rows that the experts take with their padding; -1 after exec.Fail, with nothing
// written.
int64_t PlaceRows(const Exec& exec, const PlacementRequest& request, const Placement& placement);

}  // namespace moe_ep::cpu
