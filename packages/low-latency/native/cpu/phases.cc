#include "cpu/kernels.h"

namespace moe_ep::cpu {

void Dispatch(const Exec& exec, const DispatchCall& call) {
  if (call.phases.send && !DispatchSend(exec, call)) return;
  if (call.phases.receive) DispatchReceive(exec, call);
}

void Combine(const Exec& exec, const CombineCall& call) {
  if (call.phases.send && !CombineSend(exec, call)) return;
  if (call.phases.receive) CombineReceive(exec, call);
}

}  // namespace moe_ep::cpu
