// First half of a dispatch: ranks tell one another how many rows they will send, and each derives
// the whole layout.
#pragma once

#include "calls.h"
#include "moe_ep/layout/placement.h"

namespace moe_ep::cpu {

void Notify(const Exec& exec, const NotifyCall& call);

// The same meeting without counts, for a dispatch with a cached plan: slots are free on all ranks
// afterwards.
void NotifyCached(const Exec& exec, const NotifyCachedCall& call);

}  // namespace moe_ep::cpu
