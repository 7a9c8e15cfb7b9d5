// Copies to several peers by one kernel: their pieces take turns, so that all links are busy.
#include <algorithm>

#include "cuda/operations.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/cuda/move_stages.cuh"

namespace moe_ep::cuda {
namespace {

constexpr int kMostParts = 64;  // of a launch: they are a kernel argument
constexpr int64_t kDefaultBlocks = 16;
constexpr int64_t kPieceBytes = kMostMovedBytes;

struct PutArguments {
  PutPart parts[kMostParts];
  int count;
  int64_t longest;  // bytes of the longest part
  const moe_ep_failure_record* failure;
};

// Pieces of a warp, one in so many: number n is a piece of part n mod count.
struct PutCursor {
  const PutArguments& a;
  int64_t item;
  int64_t step;
  int part = 0;
  int64_t offset = 0;

  __device__ PutCursor(const PutArguments& a_, int64_t first, int64_t step_)
      : a(a_), item(first), step(step_) {
    Settle();
  }
  __device__ bool done() const { return offset >= a.longest; }
  __device__ const uint8_t* from() const { return a.parts[part].from + offset; }
  __device__ uint8_t* to() const { return a.parts[part].to + offset; }
  __device__ uint32_t bytes() const {
    const int64_t left = a.parts[part].bytes - offset;
    return static_cast<uint32_t>(left < kPieceBytes ? left : kPieceBytes);
  }
  __device__ void Next() {
    item += step;
    Settle();
  }

 private:
  // Parts that are shorter have no piece there.
  __device__ void Settle() {
    while (true) {
      part = static_cast<int>(item % a.count);
      offset = item / a.count * kPieceBytes;
      if (done() || offset < a.parts[part].bytes) return;
      item += step;
    }
  }
};

__global__ void __launch_bounds__(kMoveThreads) PutKernel(const __grid_constant__ PutArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMoveWarps][kMoveStages];
  if (threadIdx.x < kMoveWarps * kMoveStages) InitBarrier(&full[0][0] + threadIdx.x, 1);
  FenceBarriers();
  __syncthreads();
  if (FailedForBlock(a.failure)) return;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  MoveStages stages{shared + warp * kMoveStages * kPieceBytes, full[warp], kPieceBytes, lane};
  PutCursor cursor(a, int64_t{warp} * gridDim.x + blockIdx.x, int64_t{gridDim.x} * kMoveWarps);
  PutCursor ahead = cursor;
  LoadFirst(stages, ahead);
  MoveUntil(
      stages, cursor, ahead, [](const PutCursor&) { return false; },
      [&](const PutCursor& at) { return lane == 0 ? at.to() : nullptr; });
  WaitBulkStores<0>();
}

bool IsAligned(const PutPart& part) {
  const auto all = reinterpret_cast<uintptr_t>(part.from) | reinterpret_cast<uintptr_t>(part.to) |
                   static_cast<uintptr_t>(part.bytes);
  return all % 16 == 0;
}

}  // namespace

void PutAll(const Exec& exec, const std::vector<PutPart>& parts, int64_t sms) {
  auto* const stream = static_cast<cudaStream_t>(exec.cuda_stream());
  PutArguments a = {.parts = {}, .count = 0, .longest = 0, .failure = exec.cuda_skip()};
  const auto launch = [&] {
    if (a.count == 0) return;
    const int64_t pieces = (a.longest + kPieceBytes - 1) / kPieceBytes * a.count;
    const int64_t useful = (pieces + kMoveWarps - 1) / kMoveWarps;
    const int64_t grid =
        std::min<int64_t>({sms > 0 ? sms : kDefaultBlocks, useful, Multiprocessors(exec.device())});
    Launch(PutKernel,
           {.grid = dim3(static_cast<unsigned>(grid)),
            .block = kMoveThreads,
            .shared_bytes = kMoveWarps * kMoveStages * kPieceBytes},
           stream, a);
    a.count = 0;
    a.longest = 0;
  };
  for (const PutPart& part : parts) {
    if (part.bytes == 0) continue;
    if (!IsAligned(part)) {
      Check(cudaMemcpyAsync(part.to, part.from, static_cast<size_t>(part.bytes), cudaMemcpyDefault,
                            stream),
            "cudaMemcpyAsync");
      continue;
    }
    a.parts[a.count++] = part;
    a.longest = std::max(a.longest, part.bytes);
    if (a.count == kMostParts) launch();
  }
  launch();
}

}  // namespace moe_ep::cuda
