// Rows into the layouts of grouped GEMMs, on a cuda device.
#pragma once

#include "moe_ep/command.h"
#include "requests.h"

namespace moe_ep::cuda {

// `expert_ids` [capacity] may be null.
void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
             int32_t* expert_ids);

// counts[e] = slots of local expert e.
void CountExpertNumTokens(const Exec& exec, const LocalExperts& experts, int64_t num_slots,
                          int64_t topk, int32_t* counts);

}  // namespace moe_ep::cuda
