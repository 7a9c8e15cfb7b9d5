// Brings grouped results home. Some blocks add up, for each token of every rank, the rows that this
// rank has for it, and leave the sum in the place of the first; the others pull such sums of their
// own tokens from all ranks, as soon as these tell that a run of tokens is done. A token's rows
// cross the links once for each rank, and neither half waits for the whole of the other.
#include <algorithm>

#include "cuda/blocks.h"
#include "cuda/kernels.h"
#include "cuda/meet_for_combine.h"
#include "cuda/places.cuh"
#include "cuda/pull_rows.cuh"
#include "cuda/run_units.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x636f6d62696e6567;  // this file's
constexpr int kPlacesThreads = 128;

struct GroupedArguments {
  DeviceBuffer buffer;
  RowPieces pieces;
  const uint8_t* x;  // grouped rows
  uint8_t* reduced;  // where their sums go: this rank's rows
  int reducing_blocks;
  int stages;
  PullShape shape;
  GroupedRows rows;
  uint8_t* out;
  unsigned int* arrived;
  Patience patience;
  moe_ep_failure_record* snapshot;
};

__global__ void __launch_bounds__(kPlacesThreads)
    PlacesKernel(const __grid_constant__ PlacesArguments a, const moe_ep_failure_record* failure) {
  if (Failed(failure)) return;
  for (int64_t run = blockIdx.x; run * kRunTokens < a.tokens; run += gridDim.x) WritePlaces(a, run);
}

// The loader of a group that adds up this rank's rows. A warp calls it.
__device__ void LoadOwnRows(const GroupedArguments& a, Ring ring, const PlacesWindow& window,
                            int64_t unit, int64_t step, int lane) {
  const DeviceBuffer& buffer = a.buffer;
  const RunUnits units(buffer, lane < buffer.ranks() ? buffer.CombineHeadOf(lane).tokens : 0);
  const auto fetch = [&](int number, int64_t of) {
    if (lane == 0 && of < units.count())
      window.Fetch(number, buffer.PlacesOf(units.Source(of), units.Run(of), window.topk));
  };
  unit = units.FirstFrom(unit, step);
  fetch(0, unit);
  for (int number = 0; unit < units.count(); ++number) {
    const int64_t next = units.FirstFrom(unit + step, step);
    __syncwarp();
    fetch(number + 1, next);
    const TokenPlaces places = window.Await(number);
    const auto tokens = static_cast<int>(units.Tokens(unit));
    for (int token = 0; token < tokens; ++token) {
      int32_t row = -1;
      float weight = 0.0f;
      if (lane < window.topk) {
        const int64_t slot = token * window.topk + lane;
        weight = places.weights()[slot];
        if (places.ranks()[slot] == buffer.rank()) row = places.rows()[slot];
      }
      const uint32_t slots = __ballot_sync(kAllLanes, row >= 0);
      if (slots == 0) continue;
      const int32_t first = __shfl_sync(kAllLanes, row, __ffs(static_cast<int>(slots)) - 1);
      ring.PushSums(a.pieces, 0, static_cast<int>(a.pieces.count), first, row >= 0,
                    {a.x + row * a.pieces.row_bytes, weight}, lane);
    }
    ring.PushNote(
        {Note::kPublish, 0.0f, units.Source(unit), static_cast<uint32_t>(units.Run(unit))}, lane);
    unit = next;
  }
  ring.PushNote({Note::kEnd, 0.0f, 0, 0}, lane);
}

// Until ranks have added up what they have for a token: a lane for each rank. A warp calls it.
__device__ bool WaitForReduced(const GroupedArguments& a, uint64_t begin_ns, uint64_t epoch,
                               int64_t run, uint32_t ranks, int lane) {
  bool ok = true;
  if ((ranks >> lane & 1) != 0) {
    const DeviceBuffer& buffer = a.buffer;
    const uint64_t* const reduced = buffer.ReducedOf(buffer.rank(), lane, run);
    ok = WaitUntil(
        buffer.routes, a.patience, begin_ns, [=] { return LoadSignal(reduced) >= epoch; },
        [&] { return WaitedFor(buffer, Operation::kIntranodeCombine, Missing::kResults, lane); });
  }
  ok = __all_sync(kAllLanes, ok);
  __syncwarp();
  FenceGlobalForBulk();
  return ok;
}

template <DType dtype>
__global__ void __launch_bounds__(kRingThreads, 1)
    CombineGroupedKernel(const __grid_constant__ GroupedArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ RingBarriers barriers[kGroups];
  __shared__ uint64_t window_full[kGroups][2];
  const GroupPlace me;
  if (me.thread == 0) {
    barriers[me.group].Init();
    InitBarrier(&window_full[me.group][0], 1);
    InitBarrier(&window_full[me.group][1], 1);
  }
  FenceBarriers();
  __syncthreads();
  cudaGridDependencySynchronize();
  FenceGlobalForBulk();
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const uint64_t epoch = buffer.Epochs().combine;
  const Ring ring{barriers[me.group], shared + me.group * a.stages * a.pieces.bytes, a.pieces.bytes,
                  a.stages};
  const auto block = static_cast<int>(blockIdx.x);
  if (FailedForBlock(a.patience.failure)) {
    // Nothing is done, but the block counts.
  } else if (block < a.reducing_blocks) {
    if (me.loads()) {
      const int64_t window_bytes = TokenPlaces::Bytes(a.rows.topk);
      const PlacesWindow window{
          shared + kGroups * a.stages * a.pieces.bytes + me.group * 2 * window_bytes,
          window_full[me.group], window_bytes, a.rows.topk};
      LoadOwnRows(a, ring, window, int64_t{me.group} * a.reducing_blocks + block,
                  int64_t{kGroups} * a.reducing_blocks, me.lane);
    } else {
      SumRows<dtype, dtype, /*kWeighted=*/true, /*kBias=*/false>(
          ring, {a.reduced, a.pieces.row_bytes}, me, [&](const Note& note) {
            FenceGlobalForBulk();
            StoreSignal(buffer.ReducedOf(note.row, buffer.rank(), note.offset), epoch);
          });
    }
  } else if (me.loads()) {
    const PullCursor cursor(a.shape, block - a.reducing_blocks,
                            static_cast<int>(gridDim.x) - a.reducing_blocks, me.group);
    int64_t known = -1;  // the run that was waited for last
    uint32_t known_ranks = 0;
    PullRows(buffer, a.pieces, a.rows, cursor, ring, me.lane, [&](int64_t token, uint32_t ranks) {
      const int64_t run = token / kRunTokens;
      if (run != known) known_ranks = 0;
      known = run;
      const uint32_t others = ranks & ~known_ranks;
      known_ranks |= ranks;
      return others == 0 || WaitForReduced(a, begin_ns, epoch, run, others, me.lane);
    });
  } else {
    SumRows<dtype, dtype, /*kWeighted=*/false, /*kBias=*/false>(ring, {a.out, a.pieces.row_bytes},
                                                                me, [](const Note&) {});
  }
  if (!IsLastBlock(a.arrived) || threadIdx.x >= kLanes) return;
  EndCombine(buffer, a.patience.failure, a.snapshot, me.lane);
}

template <DType dtype>
void LaunchGrouped(const Exec& exec, const GroupedArguments& a, int64_t grid) {
  const int64_t windows = kGroups * 2 * TokenPlaces::Bytes(a.rows.topk);
  Launch(CombineGroupedKernel<dtype>,
         {.grid = dim3(static_cast<unsigned>(grid)),
          .block = kRingThreads,
          .shared_bytes = kGroups * a.stages * a.pieces.bytes + windows,
          .overlaps_previous = true},
         exec.cuda_stream(), a);
}

}  // namespace

void CombineGrouped(const Exec& exec, const CombineGroupedCall& call) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  const int64_t tokens = call.out.size(0);
  const int64_t topk = call.topk_idx.size(1);
  const ExpertPlacement placement{call.experts, ranks};
  const PlacesArguments places = {
      .buffer = ToDevice(buffer, call.slot),
      .placement = placement,
      .tokens = tokens,
      .topk = topk,
      .ids = TopkIds(call.topk_idx),
      .rows = call.slot_row.data<int32_t>(),
      .weights = call.topk_weights.data<float>(),
  };
  Launch(PlacesKernel,
         {.grid = GridFor((tokens + kRunTokens - 1) / kRunTokens, exec.device(), 4),
          .block = kPlacesThreads},
         exec.cuda_stream(), places, exec.cuda_skip());
  MeetForCombine(exec, buffer, call.slot, {call.x.size(1), static_cast<int64_t>(call.x.dtype()), 0},
                 tokens, call.timeout_ms);
  const RowPieces pieces = RowPieces::Of(row_bytes, kMostSumBytes, kSumGranule);
  // Sums read all selections and write some, at the speed of memory; pulls are held up by links,
  // which few multiprocessors keep busy.
  const int64_t useful = 2 * buffer.layout.max_runs;
  const int64_t grid = std::max<int64_t>(
      2, BlocksFor(Moves::kCopies, call.sms, useful, Multiprocessors(exec.device())));
  const int64_t pulling = std::max<int64_t>(1, grid * 3 / 8);
  const int64_t windows = kGroups * 2 * TokenPlaces::Bytes(topk);
  const GroupedArguments a = {
      .buffer = ToDevice(buffer, call.slot),
      .pieces = pieces,
      .x = call.x.data<uint8_t>(),
      .reduced = buffer.Rows(buffer.routes.rank(), call.slot),
      .reducing_blocks = static_cast<int>(grid - pulling),
      .stages = StagesIn((kRingBytes - windows) / kGroups, pieces),
      .shape = ShapeOf(tokens, pieces, pulling, kRunTokens),
      .rows = {call.slot_row.data<int32_t>(), TopkIds(call.topk_idx), static_cast<int32_t>(topk),
               placement, ranks},
      .out = call.out.data<uint8_t>(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1),
      .patience = PatienceOf(exec, call.timeout_ms),
      .snapshot = exec.cuda_snapshot(),
  };
  switch (call.out.dtype()) {
    case DType::kBF16:
      return LaunchGrouped<DType::kBF16>(exec, a, grid);
    case DType::kF16:
      return LaunchGrouped<DType::kF16>(exec, a, grid);
    default:
      return LaunchGrouped<DType::kF32>(exec, a, grid);
  }
}

}  // namespace moe_ep::cuda
