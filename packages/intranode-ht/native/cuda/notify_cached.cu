// The first half of a dispatch with a cached plan: ranks only tell one another that their slots are
// free, and compare what they were called with. One warp, a lane for each rank.
#include "cuda/kernels.h"
#include "cuda/meeting.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

struct CachedArguments {
  DeviceBuffer buffer;
  SharedArguments shared;
  const int32_t* rank_prefix_matrix;
  int64_t tokens;
  Patience patience;
  Reporting reporting;
};

// FNV-1a over the counts, as on the cpu.
__device__ int64_t DigestOf(const int32_t* counts, int count) {
  uint64_t digest = 0xcbf29ce484222325;
  for (int i = 0; i < count; ++i)
    digest = (digest ^ static_cast<uint32_t>(counts[i])) * 0x100000001b3;
  return static_cast<int64_t>(digest >> 1);
}

__global__ void NotifyCachedKernel(const __grid_constant__ CachedArguments a) {
  extern __shared__ int32_t counts[];
  cudaTriggerProgrammaticLaunchCompletion();  // what sends rows waits for this kernel's end
  if (FailedForWarp(a.patience.failure)) return;
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const auto lane = static_cast<int>(threadIdx.x);
  const PoisonLook poison(buffer.routes);
  const uint64_t epoch = buffer.Epochs().dispatch + 1;
  const uint64_t combines = buffer.Epochs().combine;
  const int num_counts = buffer.ranks() * buffer.ranks();
  for (int i = lane; i < num_counts; i += kLanes) counts[i] = a.rank_prefix_matrix[i];
  const bool ok = lane != 0 || poison.Check(buffer.routes, a.patience.failure);
  if (!__all_sync(kAllLanes, ok)) return;
  __syncwarp();
  if (lane == 0) buffer.Epochs().dispatch = epoch;
  if (!WaitForAll(buffer, a.patience, begin_ns, SignalKind::kCombineRead, combines,
                  Operation::kIntranodeDispatch, Missing::kCombineRead, lane))
    return;
  if (lane < buffer.ranks()) {
    SharedArguments shared = a.shared;
    shared.plan_digest = DigestOf(counts, num_counts);
    FillHead(buffer.MessageAt(lane, buffer.rank(), epoch).head(), shared, {-1, -1},
             buffer.layout.capacity, a.tokens);
    StoreSignal(buffer.routes.Signal(lane, buffer.SignalIndex(SignalKind::kCounts, buffer.rank())),
                epoch);
  }
  if (!WaitForAll(buffer, a.patience, begin_ns, SignalKind::kCounts, epoch,
                  Operation::kIntranodeDispatch, Missing::kFreeSlot, lane))
    return;
  if (AnyHeadIsWrong(buffer, epoch)) {
    if (lane == 0) FailForHeads(buffer, epoch, a.reporting, a.patience.failure);
    return;
  }
  if (lane == 0) buffer.Epochs().settled = epoch;
}

}  // namespace

void NotifyCached(const Exec& exec, const NotifyCachedCall& call) {
  const CachedArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .shared = call.arguments,
      .rank_prefix_matrix = call.rank_prefix_matrix.data<int32_t>(),
      .tokens = call.tokens,
      .patience = PatienceOf(exec, call.timeout_ms),
      .reporting = MakeReporting(),
  };
  const int64_t bytes = call.rank_prefix_matrix.numel() * static_cast<int64_t>(sizeof(int32_t));
  Launch(NotifyCachedKernel, {.grid = 1, .block = kLanes, .shared_bytes = bytes},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
