// Weighted sums of expert rows back in token order. Definitions: README.md and src/reference.
#pragma once

#include "moe_ep/command.h"
#include "requests.h"

namespace moe_ep::cpu {

void UnpermuteAndReduce(const Exec& exec, const UnpermuteRequest& request);

}  // namespace moe_ep::cpu
