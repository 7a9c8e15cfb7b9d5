// Dispatch and combine on a cuda device. Only where MOE_EP_CUDA.
#pragma once

#include "calls.h"

namespace moe_ep::cuda {

inline constexpr int kMostRanks = 32;  // a lane for each

void Dispatch(const Exec& exec, const DispatchCall& call);
void Combine(const Exec& exec, const CombineCall& call);
void RefuseCombine(const Exec& exec, const RefuseCombineCall& call);
void UpdateMask(const Exec& exec, const UpdateMaskCall& call);
void QueryMask(const Exec& exec, const QueryMaskCall& call);

}  // namespace moe_ep::cuda
