// Rows into the layouts of grouped GEMMs. Definitions: README.md and src/reference.
#pragma once

#include <cstdint>

#include "moe_ep/command.h"
#include "requests.h"

namespace moe_ep::cpu {

// `expert_ids` [capacity] may be null.
void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
             int32_t* expert_ids);

}  // namespace moe_ep::cpu
