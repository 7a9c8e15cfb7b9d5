// Second half of a dispatch: every row is written once to each rank that needs it, straight to its
// final place.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

void Send(const Exec& exec, const SendCall& call);

}  // namespace moe_ep::cpu
