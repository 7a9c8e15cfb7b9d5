// Rows into the layouts of grouped GEMMs. Definitions: README.md and src/reference.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/placement.h"
#include "cpu/scale_rows.h"
#include "moe_ep/command.h"

namespace moe_ep::cpu {

struct RowMove {
  const uint8_t* from;
  int64_t from_stride;  // bytes
  uint8_t* to;          // rows lie without gaps
  int64_t row_bytes;
};

// Ids of rows that no slot went to.
struct PaddingIds {
  std::optional<int32_t> inside;  // behind an expert's rows; absent: the expert's own id
  std::optional<int32_t> behind;  // behind the last expert; absent: stays as it was
};

struct PermuteRequest {
  PlacementRequest placement;
  RowMove rows;
  ScaleMove scales;
  PaddingIds padding_ids;
  bool zero_padding;
};

// `expert_ids` [capacity] may be null.
void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
             int32_t* expert_ids);

}  // namespace moe_ep::cpu
