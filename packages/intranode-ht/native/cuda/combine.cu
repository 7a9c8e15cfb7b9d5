// Brings results home in two steps: ranks meet, then each pulls the rows of its tokens.
#include <algorithm>

#include "cuda/blocks.h"
#include "cuda/kernels.h"
#include "cuda/meet_for_combine.h"
#include "cuda/pull_rows.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x636f6d62696e6521;  // this file's

struct PullArguments {
  DeviceBuffer buffer;
  RowPieces pieces;
  PullShape shape;
  int stages;
  const int32_t* rows_of_token;  // [T, R]
  SumOutput out;
  float* out_weights;  // [T, topk], or null
  int64_t topk;
  unsigned int* arrived;
  moe_ep_failure_record* failure;
  moe_ep_failure_record* snapshot;
};

// The same sums for the weights that each rank gives back: a thread for each. All threads of the
// grid call it.
__device__ void PullWeights(const PullArguments& a) {
  const int ranks = a.buffer.ranks();
  const int64_t count = a.shape.tokens * a.topk;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t token = i / a.topk;
    const int32_t* const rows = a.rows_of_token + token * ranks;
    bool any = false;
    float sum = -0.0f;
#pragma unroll 4
    for (int rank = 0; rank < ranks; ++rank) {
      const int32_t row = rows[rank];
      if (row < 0) continue;
      any = true;
      sum = __fadd_rn(sum, a.buffer.TopkWeights(rank)[row * a.topk + (i - token * a.topk)]);
    }
    reinterpret_cast<uint32_t*>(a.out_weights)[i] = CanonicalF32Bits(any ? sum : 0.0f);
  }
}

template <DType dtype, bool kBias>
__global__ void __launch_bounds__(kRingThreads, 1)
    PullKernel(const __grid_constant__ PullArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ RingBarriers barriers[kGroups];
  const GroupPlace me;
  if (me.thread == 0) barriers[me.group].Init();
  FenceBarriers();
  __syncthreads();
  cudaGridDependencySynchronize();
  FenceGlobalForBulk();
  if (!FailedForBlock(a.failure)) {
    const Ring ring{barriers[me.group], shared + me.group * a.stages * a.pieces.bytes,
                    a.pieces.bytes, a.stages};
    if (me.loads()) {
      const PullCursor cursor(a.shape, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x),
                              me.group);
      PullRows(a.buffer, a.pieces, PlainRows{a.rows_of_token, a.buffer.ranks()}, cursor, ring,
               me.lane, [](int64_t, uint32_t) { return true; });
    } else {
      SumRows<dtype, dtype, /*kWeighted=*/false, kBias>(ring, a.out, me, [](const Note&) {});
    }
    if (a.out_weights != nullptr) PullWeights(a);
  }
  if (!IsLastBlock(a.arrived) || threadIdx.x >= kLanes) return;
  EndCombine(a.buffer, a.failure, a.snapshot, me.lane);
}

template <DType dtype>
void LaunchPull(const Exec& exec, const PullArguments& a, int64_t grid) {
  const bool bias = a.out.bias[0] != nullptr || a.out.bias[1] != nullptr;
  Launch(bias ? PullKernel<dtype, true> : PullKernel<dtype, false>,
         {.grid = dim3(static_cast<unsigned>(grid)),
          .block = kRingThreads,
          .shared_bytes = kGroups * a.stages * a.pieces.bytes,
          .overlaps_previous = true},
         exec.cuda_stream(), a);
}

}  // namespace

void Combine(const Exec& exec, const CombineCall& call) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int rank = buffer.routes.rank();
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  const int32_t* const rows =
      call.rank_prefix_matrix.data<int32_t>() + int64_t{ranks - 1} * ranks + rank;
  StageRows(exec, call.x, buffer.Rows(rank, call.slot), row_bytes, rows, 1);
  const int64_t topk = call.topk_weights ? call.topk_weights.size(1) : 0;
  if (call.topk_weights)
    StageWeights(exec, call.topk_weights, buffer.TopkWeights(rank, call.slot), rows);
  const int64_t tokens = call.out.size(0);
  MeetForCombine(exec, buffer, call.slot,
                 {call.x.size(1), static_cast<int64_t>(call.x.dtype()), topk}, tokens,
                 call.timeout_ms);
  const RowPieces pieces = RowPieces::Of(row_bytes, kMostSumBytes, kSumGranule);
  const int64_t useful = std::max<int64_t>(1, (tokens * pieces.count + kGroups - 1) / kGroups);
  const int64_t grid = BlocksFor(Moves::kRows, call.sms, useful, Multiprocessors(exec.device()));
  const PullArguments a = {
      .buffer = ToDevice(buffer, call.slot),
      .pieces = pieces,
      .shape = ShapeOf(tokens, pieces, grid, 1),
      .stages = StagesIn(kRingBytes / kGroups, pieces),
      .rows_of_token = call.send_head.data<int32_t>(),
      .out = {call.out.data<uint8_t>(),
              row_bytes,
              {call.bias[0].data<uint8_t>(), call.bias[1].data<uint8_t>()}},
      .out_weights = call.out_topk_weights.data<float>(),
      .topk = topk,
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1),
      .failure = exec.cuda_failure(),
      .snapshot = exec.cuda_snapshot(),
  };
  switch (call.out.dtype()) {
    case DType::kBF16:
      return LaunchPull<DType::kBF16>(exec, a, grid);
    case DType::kF16:
      return LaunchPull<DType::kF16>(exec, a, grid);
    default:
      return LaunchPull<DType::kF32>(exec, a, grid);
  }
}

void CopyBytes(const Exec& exec, const void* from, void* to, int64_t bytes) {
  if (bytes == 0 || from == to) return;
  Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                        static_cast<cudaStream_t>(exec.cuda_stream())),
        "cudaMemcpyAsync");
}

}  // namespace moe_ep::cuda
