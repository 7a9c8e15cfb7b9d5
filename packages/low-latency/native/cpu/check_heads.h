// What ranks find in one another's heads once all messages of a dispatch are there.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

// Whether all ranks may go on with this dispatch; else the stream is in failure. All find the same,
// for all see all heads.
bool CheckHeads(const Exec& exec, const DispatchCall& call);

}  // namespace moe_ep::cpu
