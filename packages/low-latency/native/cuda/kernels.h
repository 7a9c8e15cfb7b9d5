// The two phases of dispatch and of combine on a cuda device. Only where MOE_EP_CUDA.
#pragma once

#include "calls.h"

namespace moe_ep::cuda {

inline constexpr int kMostRanks = 32;  // a lane for each

void DispatchSend(const Exec& exec, const DispatchSendCall& call);
void DispatchReceive(const Exec& exec, const DispatchReceiveCall& call);
void CombineSend(const Exec& exec, const CombineSendCall& call);
void CombineReceive(const Exec& exec, const CombineReceiveCall& call);

}  // namespace moe_ep::cuda
