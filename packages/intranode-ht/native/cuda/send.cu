// The second half of a dispatch: every warp brings pieces of rows into shared memory, once, and
// writes each to all its places with bulk copies. The last block to finish tells the peers, and
// waits for theirs: the others leave their multiprocessors to whoever comes next.
#include <algorithm>

#include "cuda/finish_grouped.h"
#include "cuda/kernels.h"
#include "cuda/meeting.cuh"
#include "cuda/row_pieces.cuh"
#include "moe_ep/cuda/access.cuh"
#include "moe_ep/cuda/bulk_copy.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x73656e64726f7773;  // this file's
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;
constexpr int kStages = 3;
constexpr int64_t kMostPieceBytes = 8192;
constexpr int kDefaultBlocks = 16;

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
  const int32_t* rows_of_token;  // [T, R] rows at each rank, or [T, K] rows of each selection
  bool grouped;
  const int32_t* rank_prefix_matrix;
  bool fill_tail;
  unsigned int* arrived;
  Patience patience;
  Reporting reporting;
  moe_ep_failure_record* snapshot;  // null where another kernel follows
};

// A place of a token's row, a lane for each; a negative row is none.
struct Target {
  int peer;
  int32_t row;
};

__device__ __forceinline__ Target LoadTarget(const SendArguments& a, int64_t token, int lane) {
  const int64_t places = a.grouped ? a.topk : a.buffer.ranks();
  if (token >= a.tokens || lane >= places) return {0, -1};
  const int64_t place = token * places + lane;
  const int32_t row = a.rows_of_token[place];
  if (!a.grouped) return {lane, row};
  const int64_t expert = a.ids[place];
  return {row < 0 ? 0 : static_cast<int>(a.placement.RankOf(expert)), row};
}

// What goes with a row: small stores, neighbours together. A warp calls it.
__device__ void SendBesides(const SendArguments& a, int64_t token, int peer, int32_t row,
                            int lane) {
  const DeviceBuffer& buffer = a.buffer;
  if (a.scales != nullptr) {
    const float* from = a.scales + token * a.scale_columns;
    float* to = buffer.Scales(peer) + row * a.scale_columns;
    for (int64_t i = lane; i < a.scale_columns; i += kLanes) to[i] = from[i];
  }
  if (a.grouped) return;
  if (lane == 0) buffer.SourceIndex(peer)[row] = static_cast<int32_t>(token);
  if (a.ids.data == nullptr || lane >= a.topk) return;
  // Ids become local to the receiver: -1 where the expert lives elsewhere, and such slots weigh
  // nothing.
  const int64_t expert = a.ids[token * a.topk + lane];
  const int64_t begin = a.placement.BeginOf(peer);
  const bool local = expert >= begin && expert < begin + a.placement.CountOf(peer);
  const int64_t to = row * a.topk + lane;
  if (a.ids.wide) {
    reinterpret_cast<int64_t*>(buffer.TopkIdx(peer))[to] = local ? expert - begin : -1;
  } else {
    reinterpret_cast<int32_t*>(buffer.TopkIdx(peer))[to] =
        static_cast<int32_t>(local ? expert - begin : -1);
  }
  if (a.weights != nullptr)
    buffer.TopkWeights(peer)[to] = local ? a.weights[token * a.topk + lane] : 0.0f;
}

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

// The pieces of a warp, in order. Loads run ahead of stores by all but one stage.
__device__ void SendPieces(const SendArguments& a, uint8_t* stages, uint64_t* full, int64_t first,
                           int64_t step, int lane) {
  const int64_t items = a.tokens * a.pieces.count;
  const auto load = [&](int64_t item, int stage) {
    if (lane != 0 || item >= items) return;
    const Piece piece = a.pieces.PieceOf(item);
    ArriveExpecting(&full[stage], piece.bytes);
    BulkLoad(stages + stage * a.pieces.bytes, a.x + piece.row * a.pieces.row_bytes + piece.offset,
             piece.bytes, &full[stage]);
  };
  for (int ahead = 0; ahead < kStages - 1; ++ahead) load(first + ahead * step, ahead);
  Target next = LoadTarget(a, a.pieces.RowOf(first), lane);
  int stage = 0;
  uint32_t parity = 0;
  for (int64_t item = first; item < items; item += step) {
    const Piece piece = a.pieces.PieceOf(item);
    const Target target = next;
    next = LoadTarget(a, a.pieces.RowOf(item + step), lane);
    uint32_t lanes = __ballot_sync(kAllLanes, target.row >= 0);
    if (piece.offset == 0) {
      for (uint32_t left = lanes; left != 0; left &= left - 1) {
        const int from = __ffs(static_cast<int>(left)) - 1;
        SendBesides(a, piece.row, __shfl_sync(kAllLanes, target.peer, from),
                    __shfl_sync(kAllLanes, target.row, from), lane);
      }
    }
    WaitBarrier(&full[stage], parity);
    if (target.row >= 0) {
      BulkStore(a.buffer.Rows(target.peer) + target.row * a.pieces.row_bytes + piece.offset,
                stages + stage * a.pieces.bytes, piece.bytes);
    }
    CommitBulkStores();
    // The stage before this one was sent when its stores have read it.
    WaitBulkStoresRead<1>();
    __syncwarp();
    load(item + (kStages - 1) * step, (stage + kStages - 1) % kStages);
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  WaitBulkStores<0>();
}

__global__ void __launch_bounds__(kThreads) SendKernel(const __grid_constant__ SendArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kWarps][kStages];
  if (threadIdx.x < kWarps * kStages) InitBarrier(&full[0][0] + threadIdx.x, 1);
  FenceBarriers();
  __syncthreads();
  cudaGridDependencySynchronize();
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const SlotEpochs epochs = buffer.Epochs();
  const bool first = blockIdx.x == 0 && threadIdx.x == 0;
  const bool failed = Failed(a.patience.failure);
  if (failed || epochs.settled != epochs.dispatch) {
    if (first && !failed) Fail(a.patience.failure, a.reporting.unsettled);
    if (first) SnapshotFailure(a.patience.failure, a.snapshot);
    return;
  }
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  if (a.fill_tail && a.ids.data != nullptr) FillTail(a);
  SendPieces(a, shared + warp * kStages * a.pieces.bytes, full[warp],
             int64_t{warp} * gridDim.x + blockIdx.x, int64_t{gridDim.x} * kWarps, lane);
  __threadfence_system();
  if (!IsLastBlock(a.arrived) || warp != 0) return;
  __threadfence_system();
  SignalAll(buffer, SignalKind::kRows, epochs.dispatch, lane);
  const bool ok = WaitForAll(buffer, a.patience, begin_ns, SignalKind::kRows, epochs.dispatch,
                             Operation::kIntranodeDispatch, Missing::kRows, lane);
  if (!ok && lane == 0) SnapshotFailure(a.patience.failure, a.snapshot);
}

// Blocks that move rows: few saturate the links between GPUs.
int BlocksFor(const Exec& exec, int64_t asked, int64_t items) {
  const int64_t wanted = asked > 0 ? asked : kDefaultBlocks;
  const int64_t useful = std::max<int64_t>(1, (items + kWarps - 1) / kWarps);
  return static_cast<int>(std::min<int64_t>({wanted, useful, Multiprocessors(exec.device())}));
}

void LaunchSend(const Exec& exec, SendArguments a, int64_t blocks) {
  a.arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1);
  const int grid = BlocksFor(exec, blocks, a.tokens * a.pieces.count);
  Launch(SendKernel,
         {.grid = dim3(static_cast<unsigned>(grid)),
          .block = kThreads,
          .shared_bytes = kWarps * kStages * a.pieces.bytes,
          .overlaps_previous = true},
         exec.cuda_stream(), a);
}

// What both kinds of dispatch fill alike.
template <typename Call>
SendArguments ArgumentsOf(const Exec& exec, const Call& call) {
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  return {
      .buffer = ToDevice(*call.buffer, call.slot),
      .placement = {call.experts, call.buffer->routes.world_size()},
      .pieces = RowPieces::Of(row_bytes, kMostPieceBytes),
      .tokens = call.x.size(0),
      .x = call.x.template data<uint8_t>(),
      .scales = call.scales.template data<float>(),
      .scale_columns = call.scales ? call.scales.size(1) : 0,
      .ids = TopkIds(call.topk_idx),
      .topk = call.topk_idx ? call.topk_idx.size(1) : 0,
      .weights = nullptr,
      .rows_of_token = nullptr,
      .grouped = false,
      .rank_prefix_matrix = nullptr,
      .fill_tail = false,
      .arrived = nullptr,
      .patience = PatienceOf(exec, call.timeout_ms),
      .reporting = MakeReporting(),
      .snapshot = nullptr,
  };
}

}  // namespace

void Send(const Exec& exec, const SendCall& call) {
  SendArguments a = ArgumentsOf(exec, call);
  a.weights = call.topk_weights.data<float>();
  a.rows_of_token = call.send_head.data<int32_t>();
  a.rank_prefix_matrix = call.rank_prefix_matrix.data<int32_t>();
  a.fill_tail = call.fill_tail;
  a.snapshot = exec.cuda_snapshot();
  LaunchSend(exec, a, call.sms);
}

void SendGrouped(const Exec& exec, const SendGroupedCall& call) {
  SendArguments a = ArgumentsOf(exec, call);
  a.rows_of_token = call.slot_row.data<int32_t>();
  a.grouped = true;
  LaunchSend(exec, a, call.sms);
  FinishGrouped(exec, call);
}

}  // namespace moe_ep::cuda
