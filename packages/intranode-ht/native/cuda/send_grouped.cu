// The second half of a dispatch into the expert-grouped layout. Some blocks send each row once to
// every rank that has selections of it, to the place of the first; all then copy rows that have
// arrived to the places of a token's other selections, as soon as a run of tokens is here: a row
// crosses the links once a rank, however many of its experts live there.
#include <algorithm>

#include "cuda/blocks.h"
#include "cuda/finish_grouped.h"
#include "cuda/kernels.h"
#include "cuda/meeting.cuh"
#include "cuda/places.cuh"
#include "cuda/run_units.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/cuda/move_stages.cuh"
#include "moe_ep/deepgemm_permute/cuda/row_pieces.cuh"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x73656e6467726f75;  // this file's

// What blocks count; zero before and after.
struct Counters {
  unsigned int arrived;
  unsigned int units;
};

struct SendGroupedArguments {
  PlacesArguments places;
  RowPieces pieces;
  const uint8_t* x;
  const float* scales;
  int64_t scale_columns;
  int sending_blocks;
  Counters* counters;
  Patience patience;
  Reporting reporting;

  __device__ const DeviceBuffer& buffer() const { return places.buffer; }
};

// Scales go with rows. A warp calls it.
__device__ void CopyScales(const float* from, float* to, int64_t columns, int lane) {
  for (int64_t i = lane; i < columns; i += kLanes) to[i] = from[i];
}

// A warp's pieces of this rank's tokens, run by run: of each run the tokens that are so far apart
// as there are warps.
struct SentCursor {
  const SendGroupedArguments& a;
  int64_t run;
  int64_t token;
  int64_t offset = 0;

  __device__ SentCursor(const SendGroupedArguments& a_, int64_t run_, int warp)
      : a(a_), run(run_), token(run_ * kRunTokens + warp) {}
  __device__ bool done() const { return token >= a.places.tokens; }
  __device__ const uint8_t* from() const { return a.x + token * a.pieces.row_bytes + offset; }
  __device__ uint32_t bytes() const { return a.pieces.BytesAt(offset); }
  __device__ void Next() {
    offset += a.pieces.bytes;
    if (offset < a.pieces.row_bytes) return;
    offset = 0;
    token = TokenAfter();
    run = token / kRunTokens;
  }
  __device__ int64_t TokenAfter() const {
    const int64_t next = token + kMoveWarps;
    return next < (run + 1) * kRunTokens ? next : next + (a.sending_blocks - 1) * kRunTokens;
  }
};
static_assert(kRunTokens % kMoveWarps == 0);

// Where a selection goes, a lane for each.
struct Selection {
  int32_t row;
  int32_t rank;  // negative: nowhere
};
__device__ __forceinline__ Selection SelectionOf(const SendGroupedArguments& a, int64_t token,
                                                 int lane) {
  if (token >= a.places.tokens || lane >= a.places.topk) return {-1, -1};
  const int64_t slot = token * a.places.topk + lane;
  const int32_t row = a.places.rows[slot];
  return {row, RankOfSelection(a.places.placement, row, a.places.ids[slot])};
}

// The runs of one block.
__device__ void SendRuns(const SendGroupedArguments& a, MoveStages& stages, uint64_t epoch,
                         int warp) {
  const DeviceBuffer& buffer = a.buffer();
  const int lane = stages.lane;
  const int64_t runs = (a.places.tokens + kRunTokens - 1) / kRunTokens;
  SentCursor cursor(a, blockIdx.x, warp);
  SentCursor ahead = cursor;
  LoadFirst(stages, ahead);
  Selection next = SelectionOf(a, cursor.token, lane);
  uint8_t* to = nullptr;  // the lane's place of the present row
  for (int64_t run = blockIdx.x; run < runs; run += a.sending_blocks) {
    WritePlaces(a.places, run);
    MoveUntil(
        stages, cursor, ahead, [&](const SentCursor& at) { return at.run != run; },
        [&](const SentCursor& at) -> uint8_t* {
          if (at.offset != 0) return to == nullptr ? nullptr : to + at.offset;
          const Selection selection = next;
          next = SelectionOf(a, at.TokenAfter(), lane);
          const uint32_t same = __match_any_sync(kAllLanes, selection.rank);
          const bool first = selection.rank >= 0 && __ffs(static_cast<int>(same)) - 1 == lane;
          to = first ? buffer.Rows(selection.rank) + selection.row * a.pieces.row_bytes : nullptr;
          if (a.scales == nullptr) return to;
          const float* const scales = a.scales + at.token * a.scale_columns;
          for (uint32_t left = __ballot_sync(kAllLanes, first); left != 0; left &= left - 1) {
            const int slot = __ffs(static_cast<int>(left)) - 1;
            const int rank = __shfl_sync(kAllLanes, selection.rank, slot);
            const int64_t row = __shfl_sync(kAllLanes, selection.row, slot);
            CopyScales(scales, buffer.Scales(rank) + row * a.scale_columns, a.scale_columns, lane);
          }
          return to;
        });
    WaitBulkStores<0>();
    FenceGlobalForBulk();
    __syncthreads();
    if (warp == 0 && lane < buffer.ranks())
      StoreSignal(buffer.SentOf(lane, buffer.rank(), run), epoch);
  }
}

// Pieces of rows that have more than one place here, of one run.
struct CopiedCursor {
  const SendGroupedArguments& a;
  uint32_t tokens;        // of the run, still to be copied
  const int32_t* firsts;  // where the rows of the run's tokens are
  int64_t offset = 0;

  __device__ bool done() const { return tokens == 0; }
  __device__ int token() const { return __ffs(static_cast<int>(tokens)) - 1; }
  __device__ const uint8_t* from() const {
    const DeviceBuffer& buffer = a.buffer();
    return buffer.Rows(buffer.rank()) + firsts[token()] * a.pieces.row_bytes + offset;
  }
  __device__ uint32_t bytes() const { return a.pieces.BytesAt(offset); }
  __device__ void Next() {
    offset += a.pieces.bytes;
    if (offset < a.pieces.row_bytes) return;
    offset = 0;
    tokens &= tokens - 1;
  }
};

// One run of one source, once it is here. A warp calls it.
__device__ void CopyRun(const SendGroupedArguments& a, MoveStages& stages,
                        const TokenPlaces& places, int tokens, int32_t* firsts) {
  const DeviceBuffer& buffer = a.buffer();
  const int lane = stages.lane;
  const auto row_of = [&](int token) {
    const int64_t slot = token * places.topk + lane;
    const bool here = lane < places.topk && places.ranks()[slot] == buffer.rank();
    return here ? places.rows()[slot] : -1;
  };
  uint32_t several = 0;
  for (int token = 0; token < tokens; ++token) {
    const int32_t row = row_of(token);
    const uint32_t lanes = __ballot_sync(kAllLanes, row >= 0);
    if (__popc(lanes) < 2) continue;
    several |= 1u << token;
    if (__ffs(static_cast<int>(lanes)) - 1 == lane) firsts[token] = row;
  }
  __syncwarp();
  CopiedCursor cursor{a, several, firsts};
  CopiedCursor ahead = cursor;
  LoadFirst(stages, ahead);
  uint8_t* to = nullptr;
  MoveUntil(
      stages, cursor, ahead, [](const CopiedCursor&) { return false; },
      [&](const CopiedCursor& at) -> uint8_t* {
        if (at.offset != 0) return to == nullptr ? nullptr : to + at.offset;
        const int64_t first = firsts[at.token()];
        const int32_t row = row_of(at.token());
        const bool other = row >= 0 && row != first;
        to = other ? buffer.Rows(buffer.rank()) + row * a.pieces.row_bytes : nullptr;
        if (a.scales == nullptr) return to;
        float* const scales = buffer.Scales(buffer.rank());
        for (uint32_t left = __ballot_sync(kAllLanes, other); left != 0; left &= left - 1) {
          const int64_t copy = __shfl_sync(kAllLanes, row, __ffs(static_cast<int>(left)) - 1);
          CopyScales(scales + first * a.scale_columns, scales + copy * a.scale_columns,
                     a.scale_columns, lane);
        }
        return to;
      });
}

// Runs of all sources, whoever comes first takes the next: false where one does not come. A warp
// calls it.
__device__ bool CopyRuns(const SendGroupedArguments& a, MoveStages& stages, PlacesWindow window,
                         int32_t* firsts, uint64_t begin_ns, uint64_t epoch) {
  const DeviceBuffer& buffer = a.buffer();
  const int lane = stages.lane;
  const RunUnits units(buffer, lane < buffer.ranks()
                                   ? buffer.MessageAt(buffer.rank(), lane, epoch).head().tokens
                                   : 0);
  for (int number = 0;;) {
    unsigned int unit = 0;
    if (lane == 0) unit = atomicAdd(&a.counters->units, 1u);
    unit = __shfl_sync(kAllLanes, unit, 0);
    if (unit >= units.count()) return true;
    const int64_t tokens = units.Tokens(unit);
    if (tokens <= 0) continue;
    const int64_t run = units.Run(unit);
    const int source = units.Source(unit);
    bool here = true;
    if (lane == 0) {
      const uint64_t* const sent = buffer.SentOf(buffer.rank(), source, run);
      here = WaitUntil(
          buffer.routes, a.patience, begin_ns, [=] { return LoadSignal(sent) >= epoch; },
          [&] { return WaitedFor(buffer, Operation::kIntranodeDispatch, Missing::kRows, source); });
    }
    if (!__all_sync(kAllLanes, here)) return false;
    __syncwarp();
    FenceGlobalForBulk();
    if (lane == 0) window.Fetch(number, buffer.PlacesOf(source, run, a.places.topk));
    CopyRun(a, stages, window.Await(number), static_cast<int>(tokens), firsts);
    ++number;
  }
}

__global__ void __launch_bounds__(kMoveThreads)
    SendGroupedKernel(const __grid_constant__ SendGroupedArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full[kMoveWarps][kMoveStages];
  __shared__ uint64_t window_full[kMoveWarps][2];
  __shared__ int32_t firsts[kMoveWarps][kRunTokens];
  if (threadIdx.x < kMoveWarps * kMoveStages) InitBarrier(&full[0][0] + threadIdx.x, 1);
  if (threadIdx.x < kMoveWarps * 2) InitBarrier(&window_full[0][0] + threadIdx.x, 1);
  FenceBarriers();
  __syncthreads();
  cudaGridDependencySynchronize();
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer();
  const SlotEpochs epochs = buffer.Epochs();
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  if (MaySend(epochs, a.reporting, a.patience.failure)) {
    MoveStages stages{shared + warp * kMoveStages * a.pieces.bytes, full[warp], a.pieces.bytes,
                      lane};
    if (static_cast<int>(blockIdx.x) < a.sending_blocks) SendRuns(a, stages, epochs.dispatch, warp);
    const int64_t window_bytes = TokenPlaces::Bytes(a.places.topk);
    const PlacesWindow window{
        shared + kMoveWarps * kMoveStages * a.pieces.bytes + warp * 2 * window_bytes,
        window_full[warp], window_bytes, a.places.topk};
    CopyRuns(a, stages, window, firsts[warp], begin_ns, epochs.dispatch);
    WaitBulkStores<0>();
  }
  if (!IsLastBlock<Reach::kSystem>(&a.counters->arrived) || warp != 0) return;
  if (lane == 0) a.counters->units = 0;
  EndSend(buffer, a.patience, begin_ns, epochs.dispatch, nullptr, lane);
}

}  // namespace

void SendGrouped(const Exec& exec, const SendGroupedCall& call) {
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  const int64_t topk = call.topk_idx.size(1);
  const int64_t window_bytes = 2 * TokenPlaces::Bytes(topk);
  const int64_t room = (kMoveWarpBytes - window_bytes) / kMoveStages / 16 * 16;
  const RowPieces pieces = RowPieces::Of(row_bytes, std::min(kMostMovedBytes, room));
  // Blocks wait for what other ranks send: more of them than there is work for would only keep
  // others from their multiprocessors.
  const int64_t useful = std::max<int64_t>(1, 2 * call.buffer->layout.max_runs);
  const int64_t grid = BlocksFor(Moves::kCopies, call.sms, useful, Multiprocessors(exec.device()));
  const SendGroupedArguments a = {
      .places = {.buffer = ToDevice(*call.buffer, call.slot),
                 .placement = {call.experts, call.buffer->routes.world_size()},
                 .tokens = call.x.size(0),
                 .topk = topk,
                 .ids = TopkIds(call.topk_idx),
                 .rows = call.slot_row.data<int32_t>(),
                 .weights = nullptr},
      .pieces = pieces,
      .x = call.x.data<uint8_t>(),
      .scales = call.scales.data<float>(),
      .scale_columns = call.scales ? call.scales.size(1) : 0,
      .sending_blocks = static_cast<int>((grid + 1) / 2),
      .counters = exec.CudaScratch<Counters>(kScratchKey, 1),
      .patience = PatienceOf(exec, call.timeout_ms),
      .reporting = MakeReporting(),
  };
  Launch(SendGroupedKernel,
         {.grid = dim3(static_cast<unsigned>(grid)),
          .block = kMoveThreads,
          .shared_bytes = kMoveWarps * (kMoveStages * pieces.bytes + window_bytes),
          .overlaps_previous = true},
         exec.cuda_stream(), a);
  FinishGrouped(exec, call);
}

}  // namespace moe_ep::cuda
