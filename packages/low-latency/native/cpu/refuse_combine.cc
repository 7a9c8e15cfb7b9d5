#include "cpu/kernels.h"

namespace moe_ep::cpu {

// Waits for nobody. Ranks of a dispatch that failed, or that was combined, do not ask for results.
void RefuseCombine(const Exec& exec, const RefuseCombineCall& call) {
  const Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const SlotState& state = buffer.slots[call.slot];
  const bool told = buffer.ToldOfResults(call.slot) >= SignalOf(state.epoch, 0);
  if (state.received != state.epoch || told) return;
  buffer.SignalAll(call.slot, SignalKind::kResults, SignalOf(state.epoch, call.note));
}

}  // namespace moe_ep::cpu
