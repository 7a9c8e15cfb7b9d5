// Which row of the layout each slot gets.
#pragma once

#include <cstdint>

#include "moe_ep/command.h"
#include "requests.h"

namespace moe_ep::cpu {

// Rows inside an expert are ordered by token, then slot; foreign ones by global id, token, slot.
// Returns the rows that the experts take with their padding; -1 after exec.Fail, with nothing
// written.
int64_t PlaceRows(const Exec& exec, const PlacementRequest& request, const Placement& placement);

}  // namespace moe_ep::cpu
