// Dispatch and combine on the cpu.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

void Dispatch(const Exec& exec, const DispatchCall& call);
void Combine(const Exec& exec, const CombineCall& call);
void RefuseCombine(const Exec& exec, const RefuseCombineCall& call);
void UpdateMask(const Exec& exec, const UpdateMaskCall& call);
void QueryMask(const Exec& exec, const QueryMaskCall& call);

// Their phases; false, with the stream in failure, when there is nothing to go on with.
bool DispatchSend(const Exec& exec, const DispatchCall& call);
void DispatchReceive(const Exec& exec, const DispatchCall& call);
bool CombineSend(const Exec& exec, const CombineCall& call);
void CombineReceive(const Exec& exec, const CombineCall& call);

}  // namespace moe_ep::cpu
