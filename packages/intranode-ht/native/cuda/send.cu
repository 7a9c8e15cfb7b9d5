// The second half of a dispatch: every warp brings pieces of rows into shared memory, once, and
// writes each to all its places with bulk copies. The last block to finish tells the peers, and
// waits for theirs: the others leave their multiprocessors to whoever comes next.
#include <algorithm>

#include "cuda/blocks.h"
#include "cuda/kernels.h"
#include "cuda/meeting.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/cuda/move_stages.cuh"
#include "moe_ep/deepgemm_permute/cuda/row_pieces.cuh"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x73656e64726f7773;  // this file's

struct SendArguments {
  DeviceBuffer buffer;
  ExpertPlacement placement;
  RowPieces pieces;
  int64_t tokens;
  const uint8_t* x;
  const float* scales;
  int64_t scale_columns;
  TopkIds ids;  // absent: data is null
  int64_t topk;
  const float* weights;
  const int32_t* rows_of_token;  // [T, R] rows at each rank
  const int32_t* rank_prefix_matrix;
  bool fill_tail;
  unsigned int* arrived;
  Patience patience;
  Reporting reporting;
  moe_ep_failure_record* snapshot;
};

// Pieces of all rows, one in so many.
struct PieceCursor {
  const SendArguments& a;
  int64_t token;
  int64_t piece;  // of the token's row
  int64_t token_step;
  int64_t piece_step;

  __device__ PieceCursor(const SendArguments& a_, int64_t first, int64_t step)
      : a(a_),
        token(first / a_.pieces.count),
        piece(first % a_.pieces.count),
        token_step(step / a_.pieces.count),
        piece_step(step % a_.pieces.count) {}
  __device__ bool done() const { return token >= a.tokens; }
  __device__ int64_t offset() const { return piece * a.pieces.bytes; }
  __device__ const uint8_t* from() const { return a.x + token * a.pieces.row_bytes + offset(); }
  __device__ uint32_t bytes() const { return a.pieces.BytesAt(offset()); }
  __device__ void Next() {
    token += token_step;
    piece += piece_step;
    if (piece < a.pieces.count) return;
    piece -= a.pieces.count;
    ++token;
  }
};

// The row of a token at the rank with the lane's number; negative for none.
__device__ __forceinline__ int32_t RowOf(const SendArguments& a, int64_t token, int lane) {
  if (token >= a.tokens || lane >= a.buffer.ranks()) return -1;
  return a.rows_of_token[token * a.buffer.ranks() + lane];
}

// What goes with a token's rows beside their bytes, in the registers of a warp: asked for once, and
// before the row that it goes with is there.
struct Besides {
  static constexpr int kScales = 2;  // of a lane; more are looked up again for each row

  float scales[kScales];
  int owner = -1;   // the rank of the lane's slot
  int expert = -1;  // among the owner's
  float weight = 0.0f;

  static __device__ __forceinline__ Besides Of(const SendArguments& a, int64_t token, int lane) {
    Besides b;
    if (token >= a.tokens) return b;
    if (a.scales != nullptr) {
#pragma unroll
      for (int i = 0; i < kScales; ++i) {
        const int64_t column = lane + i * kLanes;
        if (column < a.scale_columns) b.scales[i] = a.scales[token * a.scale_columns + column];
      }
    }
    if (a.ids.data == nullptr || lane >= a.topk) return b;
    const int64_t id = a.ids[token * a.topk + lane];
    if (a.weights != nullptr) b.weight = a.weights[token * a.topk + lane];
    if (id < 0) return b;
    b.owner = static_cast<int>(a.placement.RankOf(id));
    b.expert = static_cast<int>(id - a.placement.BeginOf(b.owner));
    return b;
  }

  // Small stores, neighbours together.
  __device__ __forceinline__ void Send(const SendArguments& a, int64_t token, int peer, int64_t row,
                                       int lane) const {
    const DeviceBuffer& buffer = a.buffer;
    if (a.scales != nullptr) {
      float* const to = buffer.Scales(peer) + row * a.scale_columns;
#pragma unroll
      for (int i = 0; i < kScales; ++i) {
        const int64_t column = lane + i * kLanes;
        if (column < a.scale_columns) to[column] = scales[i];
      }
      for (int64_t i = lane + kScales * kLanes; i < a.scale_columns; i += kLanes)
        to[i] = a.scales[token * a.scale_columns + i];
    }
    if (lane == 0) buffer.SourceIndex(peer)[row] = static_cast<int32_t>(token);
    if (a.ids.data == nullptr || lane >= a.topk) return;
    // Ids become local to the receiver: -1 where the expert lives elsewhere, and such slots weigh
    // nothing.
    const bool local = owner == peer;
    const int64_t to = row * a.topk + lane;
    if (a.ids.wide) {
      reinterpret_cast<int64_t*>(buffer.TopkIdx(peer))[to] = local ? expert : -1;
    } else {
      reinterpret_cast<int32_t*>(buffer.TopkIdx(peer))[to] = local ? expert : -1;
    }
    if (a.weights != nullptr) buffer.TopkWeights(peer)[to] = local ? weight : 0.0f;
  }
};

// Rows that nobody sends must not look like rows of an earlier dispatch.
__device__ void FillTail(const SendArguments& a) {
  const DeviceBuffer& buffer = a.buffer;
  const int64_t last = (buffer.ranks() - 1) * buffer.ranks() + buffer.rank();
  const int64_t begin = a.rank_prefix_matrix[last] * a.topk;
  const int64_t end = buffer.layout.capacity * a.topk;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = begin + int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < end; i += step) {
    if (a.ids.wide) {
      reinterpret_cast<int64_t*>(buffer.TopkIdx(buffer.rank()))[i] = -1;
    } else {
      reinterpret_cast<int32_t*>(buffer.TopkIdx(buffer.rank()))[i] = -1;
    }
    buffer.TopkWeights(buffer.rank())[i] = 0.0f;
  }
}

// All pieces of a warp.
__device__ void SendPieces(const SendArguments& a, MoveStages stages, int64_t first, int64_t step) {
  const int lane = stages.lane;
  uint8_t* const base = lane < a.buffer.ranks() ? a.buffer.Rows(lane) : nullptr;
  PieceCursor cursor(a, first, step);
  PieceCursor ahead = cursor;
  PieceCursor after = cursor;
  LoadFirst(stages, ahead);
  int32_t next = RowOf(a, cursor.token, lane);
  Besides besides;
  if (cursor.piece == 0) besides = Besides::Of(a, cursor.token, lane);
  MoveUntil(
      stages, cursor, ahead, [](const PieceCursor&) { return false; },
      [&](const PieceCursor& at) -> uint8_t* {
        const int32_t row = next;
        after.Next();
        next = RowOf(a, after.token, lane);
        const Besides own = besides;
        if (after.piece == 0) besides = Besides::Of(a, after.token, lane);
        if (at.piece == 0) {
          const uint32_t lanes = __ballot_sync(kAllLanes, row >= 0);
          for (uint32_t left = lanes; left != 0; left &= left - 1) {
            const int peer = __ffs(static_cast<int>(left)) - 1;
            own.Send(a, at.token, peer, __shfl_sync(kAllLanes, row, peer), lane);
          }
        }
        return row < 0 ? nullptr : base + row * a.pieces.row_bytes + at.offset();
      });
  WaitBulkStores<0>();
}

__global__ void __launch_bounds__(kMoveThreads)
    SendKernel(const __grid_constant__ SendArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMoveWarps][kMoveStages];
  if (threadIdx.x < kMoveWarps * kMoveStages) InitBarrier(&full[0][0] + threadIdx.x, 1);
  FenceBarriers();
  __syncthreads();
  cudaGridDependencySynchronize();
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const SlotEpochs epochs = buffer.Epochs();
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  if (MaySend(epochs, a.reporting, a.patience.failure)) {
    if (a.fill_tail && a.ids.data != nullptr) FillTail(a);
    SendPieces(a, {shared + warp * kMoveStages * a.pieces.bytes, full[warp], a.pieces.bytes, lane},
               int64_t{warp} * gridDim.x + blockIdx.x, int64_t{gridDim.x} * kMoveWarps);
  }
  if (!IsLastBlock<Reach::kSystem>(a.arrived) || warp != 0) return;
  EndSend(buffer, a.patience, begin_ns, epochs.dispatch, a.snapshot, lane);
}

}  // namespace

void Send(const Exec& exec, const SendCall& call) {
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  const RowPieces pieces = RowPieces::Of(row_bytes, kMostMovedBytes);
  const int64_t items = call.x.size(0) * pieces.count;
  const int64_t useful = std::max<int64_t>(1, (items + kMoveWarps - 1) / kMoveWarps);
  const int64_t grid = BlocksFor(Moves::kRows, call.sms, useful, Multiprocessors(exec.device()));
  const SendArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .placement = {call.experts, call.buffer->routes.world_size()},
      .pieces = pieces,
      .tokens = call.x.size(0),
      .x = call.x.data<uint8_t>(),
      .scales = call.scales.data<float>(),
      .scale_columns = call.scales ? call.scales.size(1) : 0,
      .ids = TopkIds(call.topk_idx),
      .topk = call.topk_idx ? call.topk_idx.size(1) : 0,
      .weights = call.topk_weights.data<float>(),
      .rows_of_token = call.send_head.data<int32_t>(),
      .rank_prefix_matrix = call.rank_prefix_matrix.data<int32_t>(),
      .fill_tail = call.fill_tail,
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1),
      .patience = PatienceOf(exec, call.timeout_ms),
      .reporting = MakeReporting(),
      .snapshot = exec.cuda_snapshot(),
  };
  Launch(SendKernel,
         {.grid = dim3(static_cast<unsigned>(grid)),
          .block = kMoveThreads,
          .shared_bytes = kMoveWarps * kMoveStages * pieces.bytes,
          .overlaps_previous = true},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
