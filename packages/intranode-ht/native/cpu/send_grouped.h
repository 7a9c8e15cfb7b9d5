// Second half of a dispatch straight into the contiguous layout of grouped GEMMs: what permute
// would make of the received rows.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

void SendGrouped(const Exec& exec, const SendGroupedCall& call);

}  // namespace moe_ep::cpu
