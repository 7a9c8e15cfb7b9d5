// Weighted sums of expert rows back in token order, on a cuda device.
#pragma once

#include "moe_ep/command.h"
#include "requests.h"

namespace moe_ep::cuda {

void UnpermuteAndReduce(const Exec& exec, const UnpermuteRequest& request);

}  // namespace moe_ep::cuda
