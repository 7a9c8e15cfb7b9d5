#include "cuda/meet_for_combine.h"

#include "cuda/meeting.cuh"
#include "moe_ep/cuda/access.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr int kStageThreads = 512;

// Copies what experts left elsewhere to where peers read it. `counts`: their sum is the rows that
// are there.
struct StageArguments {
  const uint4* from;
  uint4* to;
  int64_t vectors_per_row;
  const int32_t* counts;
  int64_t num_counts;
  moe_ep_failure_record* failure;
};

__global__ void __launch_bounds__(kStageThreads)
    StageKernel(const __grid_constant__ StageArguments a) {
  if (Failed(a.failure)) return;
  int64_t rows = 0;
  for (int64_t i = 0; i < a.num_counts; ++i) rows += a.counts[i];
  const int64_t count = rows * a.vectors_per_row;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    a.to[i] = LoadOnce(a.from + i);
}

// The same for weights, which are not whole vectors.
__global__ void __launch_bounds__(kStageThreads)
    StageWeightsKernel(const float* from, float* to, int64_t topk, const int32_t* rows,
                       const moe_ep_failure_record* failure) {
  if (Failed(failure)) return;
  const int64_t count = *rows * topk;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = from[i];
}

struct MeetArguments {
  DeviceBuffer buffer;
  CombineArguments shared;
  int64_t tokens;
  Patience patience;
  Reporting reporting;
};

// Announces this rank's results and waits for those of all ranks, so that all go on or none does.
// One warp.
__global__ void MeetKernel(const __grid_constant__ MeetArguments a) {
  // What comes next may take its place on the device: it waits there for this kernel's end.
  cudaTriggerProgrammaticLaunchCompletion();
  if (FailedForWarp(a.patience.failure)) return;
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const auto lane = static_cast<int>(threadIdx.x);
  const PoisonLook poison(buffer.routes);
  const uint64_t epoch = buffer.Epochs().combine + 1;
  const bool ok = lane != 0 || poison.Check(buffer.routes, a.patience.failure);
  if (!__all_sync(kAllLanes, ok)) return;
  __syncwarp();
  if (lane == 0) {
    buffer.Epochs().combine = epoch;
    CombineHead& head = buffer.CombineHeadOf(buffer.rank());
    head.arguments = a.shared;
    head.tokens = a.tokens;
    head.refusal.Clear();
  }
  __syncwarp();
  SignalAll(buffer, SignalKind::kCombineReady, epoch, lane);
  if (!WaitForAll(buffer, a.patience, begin_ns, SignalKind::kCombineReady, epoch,
                  Operation::kIntranodeCombine, Missing::kResults, lane))
    return;
  CombineArguments mine = a.shared;
  bool refused = false;
  if (lane < buffer.ranks()) {
    const CombineHead& head = buffer.CombineHeadOf(lane);
    mine = head.arguments;
    refused = head.refusal.given();
  }
  const CombineArguments first = {__shfl_sync(kAllLanes, mine.columns, 0),
                                  __shfl_sync(kAllLanes, mine.dtype, 0),
                                  __shfl_sync(kAllLanes, mine.topk, 0)};
  const bool other =
      lane < buffer.ranks() &&
      (mine.columns != first.columns || mine.dtype != first.dtype || mine.topk != first.topk);
  const uint32_t refusing = __ballot_sync(kAllLanes, refused);
  const uint32_t different = __ballot_sync(kAllLanes, other);
  if (refusing == 0 && different == 0) return;
  const int culprit = __ffs(static_cast<int>(refusing != 0 ? refusing : different)) - 1;
  if (lane == culprit) {
    if (refusing != 0) {
      FailWithRefusal(a.reporting, buffer.CombineHeadOf(lane).refusal, lane, true,
                      a.patience.failure);
    } else {
      Fail(a.patience.failure, a.reporting.combine_mismatch, first.columns, first.dtype, first.topk,
           static_cast<int64_t>(lane) << 32 | mine.columns, mine.dtype << 32 | mine.topk);
    }
  }
  __syncwarp();
  // Nobody reads what was refused: the slot may be filled again.
  SignalAll(buffer, SignalKind::kCombineRead, epoch, lane);
}

}  // namespace

void StageRows(const Exec& exec, const Tensor& x, uint8_t* to, int64_t row_bytes,
               const int32_t* counts, int64_t num_counts) {
  if (x.data<uint8_t>() == to) return;
  const StageArguments a = {reinterpret_cast<const uint4*>(x.data()),
                            reinterpret_cast<uint4*>(to),
                            row_bytes / 16,
                            counts,
                            num_counts,
                            exec.cuda_skip()};
  Launch(StageKernel,
         {.grid = GridFor((x.size(0) * row_bytes / 16 + kStageThreads - 1) / kStageThreads,
                          exec.device(), 4),
          .block = kStageThreads},
         exec.cuda_stream(), a);
}

void StageWeights(const Exec& exec, const Tensor& weights, float* to, const int32_t* rows) {
  if (weights.data<float>() == to) return;
  Launch(StageWeightsKernel,
         {.grid = GridFor((weights.numel() + kStageThreads - 1) / kStageThreads, exec.device(), 1),
          .block = kStageThreads},
         exec.cuda_stream(), weights.data<float>(), to, weights.size(1), rows, exec.cuda_skip());
}

void MeetForCombine(const Exec& exec, const Buffer& buffer, int64_t slot,
                    const CombineArguments& shared, int64_t tokens, int64_t timeout_ms) {
  const MeetArguments a = {ToDevice(buffer, slot), shared, tokens, PatienceOf(exec, timeout_ms),
                           MakeReporting()};
  Launch(MeetKernel, {.grid = 1, .block = kLanes}, exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
