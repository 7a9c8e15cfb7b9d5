// The receiver's own part of a dispatch into the expert-grouped layout. Only where MOE_EP_CUDA.
#pragma once

#include "calls.h"

namespace moe_ep::cuda {

// What a grouped dispatch does with its own rows when all are here.
void FinishGrouped(const Exec& exec, const SendGroupedCall& call);

}  // namespace moe_ep::cuda
