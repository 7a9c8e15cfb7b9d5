// The dispatch layout where it is narrow: up to 64 ranks, and counts that fit shared memory.
#pragma once

#include "dispatch_layout.h"
#include "moe_ep/command.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {

// False, with nothing launched, when the layout is not narrow.
bool GetNarrowDispatchLayout(const Exec& exec, const TopkIds& topk_idx,
                             const DispatchLayout& layout);

}  // namespace moe_ep::cuda
