#include "cpu/refuse.h"

#include <string>

#include "cpu/meeting.h"

namespace moe_ep::cpu {
namespace {

bool HasRefused(const Buffer& buffer, int64_t call, int source) {
  const SignalCell& signal =
      buffer.routes.signal(buffer.routes.rank(), buffer.RefusalSignalIndex(call, source));
  return signal.value.load(std::memory_order_acquire) > static_cast<uint64_t>(call);
}

// The first rank that has not refused, or the number of ranks.
int FirstWithoutRefusal(const Buffer& buffer, int64_t call) {
  int source = 0;
  while (source < buffer.routes.world_size() && HasRefused(buffer, call, source)) ++source;
  return source;
}

// Whether somebody holds the meeting of the call in this slot, as the epoch that comes next here.
bool IsHeldIn(const Meeting& meeting, int64_t call) {
  const Buffer& buffer = meeting.buffer;
  for (int source = 0; source < buffer.routes.world_size(); ++source) {
    const uint64_t index = buffer.SignalIndex(meeting.slot, SignalKind::kCounts, source);
    const SignalCell& signal = buffer.routes.signal(buffer.routes.rank(), index);
    if (signal.value.load(std::memory_order_acquire) != meeting.epoch) continue;
    if (meeting.From(source).head().arguments.call == call) return true;
  }
  return false;
}

void Tell(const Meeting& meeting, const RefuseDispatchCall& call) {
  const Buffer& buffer = meeting.buffer;
  for (int peer = 0; peer < buffer.routes.world_size(); ++peer) {
    MessageHead& head = meeting.To(peer).head();
    head = {};
    head.arguments.call = call.call;
    head.refusal = call.refusal;
  }
  buffer.SignalAll(meeting.slot, SignalKind::kCounts, meeting.epoch);
}

bool TellWhereHeld(const RefuseDispatchCall& call) {
  Buffer& buffer = *call.buffer;
  for (int64_t slot = 0; slot < buffer.layout.slots; ++slot) {
    std::atomic<uint64_t>& epoch = buffer.slots[slot].dispatch_epoch;
    uint64_t last = epoch;
    const Meeting meeting{buffer, slot, last + 1};
    if (!IsHeldIn(meeting, call.call)) continue;
    // Another stream may have gone on in this slot: then its messages were not what they seemed.
    if (!epoch.compare_exchange_strong(last, meeting.epoch)) continue;
    Tell(meeting, call);
    return true;
  }
  return false;
}

}  // namespace

void RefuseDispatch(const Exec& exec, const RefuseDispatchCall& call) {
  const Buffer& buffer = *call.buffer;
  const Routes& routes = buffer.routes;
  if (!routes.CheckNotPoisoned(exec)) return;
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  for (int peer = 0; peer < routes.world_size(); ++peer) {
    routes.Signal(peer, buffer.RefusalSignalIndex(call.call, routes.rank()),
                  static_cast<uint64_t>(call.call) + 1);
  }
  const auto told = [&] {
    // Asked in this order: who has refused since does not hold the meeting.
    const bool all_refuse = FirstWithoutRefusal(buffer, call.call) == routes.world_size();
    return TellWhereHeld(call) || all_refuse;
  };
  routes.WaitUntil(exec, deadline, told, [&] {
    return std::string(kDispatchOperation) + ", refused by rank " + std::to_string(routes.rank()) +
           ": no call from rank " + std::to_string(FirstWithoutRefusal(buffer, call.call));
  });
}

void RefuseCombine(const Exec& exec, const RefuseCombineCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const uint64_t epoch = ++buffer.slots[call.slot].combine_epoch;
  buffer.CombineHeadOf(buffer.routes.rank(), call.slot).refusal = call.refusal;
  buffer.routes.Flush();
  buffer.SignalAll(call.slot, SignalKind::kCombineReady, epoch);
  // This rank reads no results: others may use their slots again as far as it is concerned.
  buffer.SignalAll(call.slot, SignalKind::kCombineRead, epoch);
}

}  // namespace moe_ep::cpu
