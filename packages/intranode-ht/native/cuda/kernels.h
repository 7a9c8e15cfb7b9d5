// The operations of an intranode buffer on a cuda device. Only where MOE_EP_CUDA.
#pragma once

#include "calls.h"

namespace moe_ep::cuda {

// Ranks that a buffer can have.
int64_t MostRanks();
// Makes what calls must not make while they are captured.
void PrepareDevice(int device);

void Notify(const Exec& exec, const NotifyCall& call);
void NotifyCached(const Exec& exec, const NotifyCachedCall& call);
void Send(const Exec& exec, const SendCall& call);
void SendGrouped(const Exec& exec, const SendGroupedCall& call);
void Combine(const Exec& exec, const CombineCall& call);
void CombineGrouped(const Exec& exec, const CombineGroupedCall& call);
void RefuseDispatch(const Exec& exec, const RefuseDispatchCall& call);
void RefuseCombine(const Exec& exec, const RefuseCombineCall& call);
void CopyBytes(const Exec& exec, const void* from, void* to, int64_t bytes);

}  // namespace moe_ep::cuda
