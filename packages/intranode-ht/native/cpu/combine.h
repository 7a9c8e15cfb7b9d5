// Brings results home: each rank sums, in f32 and in rank order, the rows that its tokens left on
// other ranks.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

void Combine(const Exec& exec, const CombineCall& call);

}  // namespace moe_ep::cpu
