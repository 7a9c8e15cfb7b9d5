#include "cuda/finish_grouped.h"

#include <algorithm>

#include "cuda/expert_starts.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr int kFinishThreads = 256;

// What is left of the expert-grouped layout when all rows are here.
struct FinishArguments {
  DeviceBuffer buffer;
  const int32_t* num_recv_selections;
  int local_experts;
  int64_t alignment;
  bool fill_with_expert;
  bool zero_padding;
  int64_t row_bytes;
  int64_t scale_columns;  // 0: no scales
  moe_ep_failure_record* failure;
  moe_ep_failure_record* snapshot;
};

// The expert of a row and whether a peer sent it. Rows past the last expert's have none.
struct RowKind {
  int expert;
  bool padding;
};

// `ends` has, for each expert, the end of its rows and of its padding.
__device__ RowKind KindOf(const int32_t* ends, int experts, int64_t row) {
  int low = 0;
  int high = experts;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (row < ends[2 * middle + 1]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return {low, low < experts && row >= ends[2 * low]};
}

constexpr int kTileRows = 32;

// A block takes tiles of rows: their ids, zeros where padding is to be zero, and their scales,
// which arrived in rows and are turned into columns in shared memory.
__global__ void __launch_bounds__(kFinishThreads)
    FinishKernel(const __grid_constant__ FinishArguments a) {
  extern __shared__ int32_t ends[];
  __shared__ float tile[kTileRows][kLanes + 1];
  if (FailedForBlock(a.failure)) {
    if (blockIdx.x == 0 && threadIdx.x == 0) SnapshotFailure(a.failure, a.snapshot);
    return;
  }
  if (threadIdx.x < kLanes) {
    ForEachStart(a.num_recv_selections, a.local_experts, a.alignment, threadIdx.x,
                 [&](int expert, int64_t start, int32_t count) {
                   const int64_t end = start + RoundUpRows(count, a.alignment);
                   ends[2 * expert] = static_cast<int32_t>(start + count);
                   ends[2 * expert + 1] = static_cast<int32_t>(end);
                 });
  }
  __syncthreads();
  const DeviceBuffer& buffer = a.buffer;
  const int rank = buffer.rank();
  const int64_t rows = a.local_experts == 0 ? 0 : ends[2 * a.local_experts - 1];
  const int64_t column_stride = (rows + 3) / 4 * 4;
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  constexpr int kFinishWarps = kFinishThreads / kLanes;
  for (int64_t first = int64_t{blockIdx.x} * kTileRows; first < rows;
       first += int64_t{gridDim.x} * kTileRows) {
    const int64_t row = first + lane;
    const RowKind kind = row < rows ? KindOf(ends, a.local_experts, row) : RowKind{0, false};
    if (warp == 0 && row < rows) {
      buffer.SourceIndex(rank)[row] = kind.padding && !a.fill_with_expert ? -1 : kind.expert;
    }
    uint32_t zeroed = 0;  // rows of the tile
    if (a.zero_padding) {
      zeroed = __ballot_sync(kAllLanes, kind.padding);
      for (uint32_t left = zeroed; left != 0; left &= left - 1) {
        auto* const to = reinterpret_cast<uint4*>(
            buffer.Rows(rank) + (first + __ffs(static_cast<int>(left)) - 1) * a.row_bytes);
        for (int64_t i = threadIdx.x; i < a.row_bytes / 16; i += kFinishThreads)
          to[i] = make_uint4(0, 0, 0, 0);
      }
    }
    for (int64_t column = 0; column < a.scale_columns; column += kLanes) {
      __syncthreads();
      for (int i = warp; i < kTileRows; i += kFinishWarps) {
        if (first + i >= rows || column + lane >= a.scale_columns) continue;
        const int64_t place = (first + i) * a.scale_columns + column + lane;
        float* const scales = buffer.Scales(rank);
        const bool zero = (zeroed >> i & 1) != 0;
        if (zero) scales[place] = 0.0f;
        tile[i][lane] = zero ? 0.0f : scales[place];
      }
      __syncthreads();
      for (int i = warp; i < kLanes; i += kFinishWarps) {
        if (row >= rows || column + i >= a.scale_columns) continue;
        buffer.ColumnScales(rank)[(column + i) * column_stride + row] = tile[lane][i];
      }
    }
  }
}

}  // namespace

void FinishGrouped(const Exec& exec, const SendGroupedCall& call) {
  const auto experts = static_cast<int>(call.num_recv_selections.numel());
  const FinishArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .num_recv_selections = call.num_recv_selections.data<int32_t>(),
      .local_experts = experts,
      .alignment = call.alignment,
      .fill_with_expert = call.fill_with_expert,
      .zero_padding = call.zero_padding,
      .row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8,
      .scale_columns = call.scales ? call.scales.size(1) : 0,
      .failure = exec.cuda_skip(),
      .snapshot = exec.cuda_snapshot(),
  };
  Launch(FinishKernel,
         {.grid = GridFor(
              std::max<int64_t>(1, (call.buffer->layout.capacity + kTileRows - 1) / kTileRows),
              exec.device(), 4),
          .block = kFinishThreads,
          .shared_bytes = 2 * experts * static_cast<int64_t>(sizeof(int32_t))},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
