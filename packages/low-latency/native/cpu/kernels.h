// The two phases of dispatch and of combine on the cpu.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

void DispatchSend(const Exec& exec, const DispatchSendCall& call);
void DispatchReceive(const Exec& exec, const DispatchReceiveCall& call);
void CombineSend(const Exec& exec, const CombineSendCall& call);
void CombineReceive(const Exec& exec, const CombineReceiveCall& call);

}  // namespace moe_ep::cpu
