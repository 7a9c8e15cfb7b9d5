// Rows into the contiguous layout of grouped GEMMs. Definitions: README.md and src/reference.ts.
#pragma once

#include <cstdint>

#include "cpu/placement.h"
#include "moe_ep/command.h"

namespace moe_ep::cpu {

// Rows that go to several places: payload or scales. A null source means that there are none.
struct RowMove {
  const uint8_t* from;
  int64_t from_stride;  // bytes
  uint8_t* to;          // rows lie without gaps
  int64_t row_bytes;
};

struct PermuteRequest {
  PlacementRequest placement;
  RowMove rows;
  RowMove scales;
  bool fill_expert;  // padding rows carry their expert's id instead of -1
  bool zero_padding;
};

void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
             int32_t* expert_ids);

}  // namespace moe_ep::cpu
