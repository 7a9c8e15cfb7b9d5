// How a rank that cannot make a call tells the others: see cpu/refuse.cc. One thread each.
#include "cuda/kernels.h"
#include "cuda/meeting.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

struct RefuseArguments {
  DeviceBuffer buffer;
  int64_t call;
  Refusal refusal;
  Patience patience;
};

__device__ int FirstWithoutRefusal(const RefuseArguments& a) {
  const DeviceRoutes& routes = a.buffer.routes;
  int source = 0;
  while (source < routes.world_size &&
         LoadSignal(routes.Signal(routes.rank, a.buffer.RefusalSignalIndex(a.call, source))) >
             static_cast<uint64_t>(a.call))
    ++source;
  return source;
}

// Whether somebody holds the meeting of the call in this slot, as the epoch that comes next here.
__device__ bool IsHeldIn(const RefuseArguments& a, int64_t slot, uint64_t epoch) {
  const DeviceBuffer& buffer = a.buffer;
  for (int source = 0; source < buffer.ranks(); ++source) {
    const uint64_t index = buffer.SignalIndexIn(slot, SignalKind::kCounts, source);
    if (LoadSignal(buffer.routes.Signal(buffer.rank(), index)) != epoch) continue;
    const Message message = buffer.MessageIn(slot, buffer.rank(), source, epoch);
    if (*const_cast<const volatile int64_t*>(&message.head().arguments.call) == a.call) return true;
  }
  return false;
}

__device__ bool TellWhereHeld(const RefuseArguments& a) {
  const DeviceBuffer& buffer = a.buffer;
  for (int64_t slot = 0; slot < buffer.layout.slots; ++slot) {
    auto* const dispatch = reinterpret_cast<unsigned long long*>(&buffer.EpochsOf(slot).dispatch);
    const unsigned long long last = *const_cast<const volatile unsigned long long*>(dispatch);
    if (!IsHeldIn(a, slot, last + 1)) continue;
    // Another stream may have gone on in this slot: then its messages were not what they seemed.
    if (atomicCAS(dispatch, last, last + 1) != last) continue;
    for (int peer = 0; peer < buffer.ranks(); ++peer) {
      MessageHead& head = buffer.MessageIn(slot, peer, buffer.rank(), last + 1).head();
      head.arguments = SharedArguments{.call = a.call};
      head.invalid = {-1, -1};
      head.refusal = a.refusal;
      const uint64_t index = buffer.SignalIndexIn(slot, SignalKind::kCounts, buffer.rank());
      StoreSignal(buffer.routes.Signal(peer, index), last + 1);
    }
    return true;
  }
  return false;
}

__global__ void RefuseDispatchKernel(const __grid_constant__ RefuseArguments a) {
  if (Failed(a.patience.failure)) return;
  const DeviceBuffer& buffer = a.buffer;
  if (!CheckNotPoisoned(buffer.routes, a.patience.failure)) return;
  for (int peer = 0; peer < buffer.ranks(); ++peer) {
    StoreSignal(buffer.routes.Signal(peer, buffer.RefusalSignalIndex(a.call, buffer.rank())),
                static_cast<uint64_t>(a.call) + 1);
  }
  const auto told = [&] {
    // Asked in this order: who has refused since does not hold the meeting.
    const bool all_refuse = FirstWithoutRefusal(a) == buffer.ranks();
    return TellWhereHeld(a) || all_refuse;
  };
  WaitUntil(buffer.routes, a.patience, Nanoseconds(), told, [&] {
    return PoisonWord{PoisonWord::kNone,
                      Operation::kIntranodeDispatch,
                      Missing::kCall,
                      0,
                      static_cast<uint16_t>(buffer.rank()),
                      static_cast<uint16_t>(FirstWithoutRefusal(a))};
  });
}

__global__ void RefuseCombineKernel(const __grid_constant__ RefuseArguments a) {
  if (Failed(a.patience.failure)) return;
  const DeviceBuffer& buffer = a.buffer;
  if (!CheckNotPoisoned(buffer.routes, a.patience.failure)) return;
  const uint64_t epoch = ++buffer.Epochs().combine;
  buffer.CombineHeadOf(buffer.rank()).refusal = a.refusal;
  // This rank reads no results: others may use their slots again as far as it is concerned.
  for (const SignalKind kind : {SignalKind::kCombineReady, SignalKind::kCombineRead}) {
    for (int peer = 0; peer < buffer.ranks(); ++peer)
      StoreSignal(buffer.routes.Signal(peer, buffer.SignalIndex(kind, buffer.rank())), epoch);
  }
}

}  // namespace

void RefuseDispatch(const Exec& exec, const RefuseDispatchCall& call) {
  const RefuseArguments a = {ToDevice(*call.buffer, 0), call.call, call.refusal,
                             PatienceOf(exec, call.timeout_ms)};
  Launch(RefuseDispatchKernel, {.grid = 1, .block = 1}, exec.cuda_stream(), a);
}

void RefuseCombine(const Exec& exec, const RefuseCombineCall& call) {
  const RefuseArguments a = {ToDevice(*call.buffer, call.slot), 0, call.refusal,
                             PatienceOf(exec, 0)};
  Launch(RefuseCombineKernel, {.grid = 1, .block = 1}, exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
