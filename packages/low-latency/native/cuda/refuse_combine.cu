// A refusal to combine: a signal of results that says that there are none. Waits for nobody.
#include "cuda/device_buffer.cuh"
#include "cuda/kernels.h"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

struct RefuseArguments {
  DeviceBuffer buffer;
  int64_t note;
  moe_ep_failure_record* failure;
};

// One block, so that its part of the signal is all of it: a warp tells that, another one that the
// slot is free.
__global__ void RefuseKernel(const __grid_constant__ RefuseArguments a) {
  const DeviceBuffer& buffer = a.buffer;
  const SlotState state = buffer.State();
  TellFree(buffer, state.epoch);
  if (threadIdx.x >= kLanes || FailedForWarp(a.failure)) return;
  const bool first = threadIdx.x == 0;
  if (__any_sync(kAllLanes, first && !CheckNotPoisoned(buffer.routes, a.failure))) return;
  // Ranks of a dispatch that failed, or that was combined, do not ask for results.
  const SharedSignal signal(buffer, SignalKind::kResults);
  if (state.received != state.epoch || signal.told() >= SignalOf(state.epoch, 0)) return;
  const uint64_t value = SignalOf(state.epoch, a.note);
  signal.TellPart(buffer, value);
  __syncwarp();
  if (first) signal.Keep(buffer, value);
}

}  // namespace

void RefuseCombine(const Exec& exec, const RefuseCombineCall& call) {
  const RefuseArguments a = {ToDevice(*call.buffer, call.slot), call.note, exec.cuda_failure()};
  Launch(RefuseKernel, {.grid = 1, .block = 2 * kLanes}, exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
