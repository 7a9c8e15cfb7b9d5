// Combine straight from rows that are grouped by expert: unpermute and combine in one pass, the
// same bits.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

void CombineGrouped(const Exec& exec, const CombineGroupedCall& call);

}  // namespace moe_ep::cpu
