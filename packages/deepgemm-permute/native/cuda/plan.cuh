// The plan of a large placement: each block ranks one chunk of the slots, the last one to finish
// places the groups. Every chunk then knows where its rows begin.
//
// All of this is run through once, and each of its instructions comes from memory: what counts is
// how many there are. Loops that hardly ever turn are not unrolled, and indices have 32 bits.
#pragma once

#include <cstdint>

#include "cuda/layout_rows.cuh"
#include "cuda/place_slots.cuh"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/last_block.cuh"

namespace moe_ep::cuda {

// Of a block. Few enough threads and registers that blocks that move long rows fit beside them.
inline constexpr int kPlanWarps = 16;

// Zero when the plan's last block has ended.
struct PlanState {
  unsigned int finished;  // blocks
  BadSlot bad;
  unsigned long long claims;  // of the kernel that moves rows, which leaves them as they are
};

struct PlanArguments {
  PlacementRequest request;
  Placement placement;
  SlotGroups groups;
  int64_t num_slots;
  int64_t num_groups;
  Describers describers;
  moe_ep_failure_record* failure;

  // The rest is for placements of many blocks.
  int shift;  // slots to chunks
  bool counts_in_shared;
  PlanState* state;
  uint32_t* prefix;  // [num_chunks, num_groups]
  uint32_t* totals;  // [num_groups]; used where counts are not in shared memory
  int32_t* starts;   // [num_groups + 1]
  uint32_t* words;   // [num_slots]; null where only counts are asked for

  __host__ __device__ int64_t num_chunks() const {
    const int64_t slots = (num_slots + (int64_t{1} << shift) - 1) >> shift;
    return slots > 0 ? slots : 1;
  }
};

// Words of shared memory that the last block needs where counts are in shared memory: totals, rows
// that are reserved, and starts.
__host__ __device__ inline int64_t PlanShared(const PlanArguments& plan) {
  return 3 * plan.num_groups + 1;
}

// Turns the chunks' counts of each group into sums of the chunks before, and gives the first warp,
// which goes on, their totals. Warps share the chunks, a lane has a group: no lane waits for
// another one. Calls besides() while the first counts are on their way.
template <typename Besides>
__device__ __forceinline__ void SumChunks(const PlanArguments& a, int64_t num_chunks,
                                          uint32_t* totals, const Besides& besides) {
  constexpr int kTogether = 12;
  __shared__ uint32_t sums[2][kPlanWarps][kWarp];  // of this turn and the one before
  const int num_warps = static_cast<int>(blockDim.x / kWarp);
  const int warp = WarpOfBlock();
  int turn = 0;
#pragma unroll 1
  for (int64_t group = Lane(); group - Lane() < a.num_groups; group += kWarp) {
    const bool mine = group < a.num_groups;
    uint32_t total = 0;
#pragma unroll 1
    for (int64_t begin = 0; begin < num_chunks; begin += num_warps * kTogether, ++turn) {
      // The last warps have the last chunks, or none.
      const int64_t first = begin + warp * kTogether;
      const int left = !mine || first >= num_chunks     ? 0
                       : num_chunks - first > kTogether ? kTogether
                                                        : static_cast<int>(num_chunks - first);
      uint32_t* place = a.prefix + first * a.num_groups + group;
      uint32_t count[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i, place += a.num_groups)
        count[i] = i < left ? __ldcg(place) : 0;
      if (turn == 0) besides();
      uint32_t sum = 0;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) sum += count[i];
      sums[turn % 2][warp][Lane()] = sum;
      __syncthreads();
      uint32_t next = total;
#pragma unroll 4
      for (int other = 0; other < num_warps; ++other) {
        const uint32_t theirs = sums[turn % 2][other][Lane()];
        if (other < warp) next += theirs;
        total += theirs;
      }
      place = a.prefix + first * a.num_groups + group;
#pragma unroll
      for (int i = 0; i < kTogether; ++i, place += a.num_groups) {
        if (i < left) *place = next;
        next += count[i];
      }
    }
    if (mine && warp == 0) totals[group] = total;
  }
}

// What the last block does: sums over chunks, checks, places of groups. It is on the way of
// everything else, so what it reads is asked for before anything waits.
__device__ __forceinline__ void PlaceChunks(const PlanArguments& a, uint32_t* shared,
                                            int64_t num_chunks) {
  const int64_t num_local = a.request.experts.num_local;
  const bool in_shared = a.counts_in_shared;
  uint32_t* const totals = in_shared ? shared : a.totals;
  int32_t* const reserved = reinterpret_cast<int32_t*>(shared + a.num_groups);
  int32_t* const starts = in_shared ? reserved + a.num_groups : a.starts;
  PlacementRequest request = a.request;
  if (in_shared && request.reserved != nullptr) request.reserved = reserved;
  const BadSlot bad = __ldcg(&a.state->bad);
  // Some blocks may have stopped for that, and counted nothing.
  const bool failed = Failed(a.failure);
  SumChunks(a, num_chunks, totals, [&] {
    if (request.reserved != reserved) return;
#pragma unroll 1
    for (int64_t expert = threadIdx.x; expert < num_local; expert += blockDim.x)
      reserved[expert] = __ldg(a.request.reserved + expert);
  });
  if (WarpOfBlock() != 0) return;
  const int lane = Lane();
  if (lane == 0) *a.state = PlanState{};
  if (__any_sync(kAllLanes, failed)) return;
  const GroupPlaces places = {totals, starts};
  if (bad != 0) [[unlikely]] {
    if (lane == 0)
      FailForSlot(a.failure, a.describers, a.groups.experts, SlotOf(bad), a.request.topk);
  } else if (a.words == nullptr) {
#pragma unroll 1
    for (int64_t expert = lane; expert < num_local; expert += kWarp)
      a.placement.expert_num_tokens[expert] = static_cast<int32_t>(totals[expert]);
  } else if (!PlaceGroups(request, a.num_groups, places)) [[unlikely]] {
    FailForRoom(a.request, totals, a.describers, a.failure);
  } else {
    __syncwarp();
    if (in_shared)
#pragma unroll 1
      for (int64_t group = lane; group <= a.num_groups; group += kWarp)
        a.starts[group] = starts[group];
    WritePlaces(a.request, places, a.placement, lane, kWarp);
  }
}

// What each block does: ranks of its slots in their groups, and how many each group has. Between
// block barriers.
template <int kRounds>
__device__ __forceinline__ void RankChunk(const PlanArguments& a, const SlotRange& range,
                                          const SlotIds<kRounds>& ids, const WarpCounts& counts) {
  const int num_warps = static_cast<int>(blockDim.x / kWarp);
  const int warp = WarpOfBlock();
  RankedSlots<kRounds> slots;
  RankSlots<kRounds>(a.groups, ids, range, warp, counts, &a.state->bad, &slots);
  __syncthreads();
  StartWarps(counts, num_warps, [&](int32_t group, uint32_t total) {
    a.prefix[int64_t{blockIdx.x} * a.num_groups + group] = total;
  });
  __syncthreads();
  if (a.words == nullptr) return;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (!range.Has(r)) break;
    const int32_t group = slots.group[r];
    // A single warp's ranks are the block's already, and its counts may lie where totals do.
    const uint32_t before = group < 0 || num_warps == 1 ? 0 : counts.At(warp, group);
    a.words[range.Slot(r)] =
        group < 0 ? ChunkedRows::kNoWord
                  : (static_cast<uint32_t>(group) << a.shift) | (before + slots.rank[r]);
  }
}

template <int kRounds>
__global__ void __launch_bounds__(kPlanWarps* kWarp, 2)
    PlanKernel(const __grid_constant__ PlanArguments a) {
  extern __shared__ uint32_t plan_memory[];
  // What is ahead on the stream has ended before the next kernel may start: that one reads inputs
  // without a wait of its own.
  cudaGridDependencySynchronize();
  const bool failed = Failed(a.failure);
  const int num_warps = static_cast<int>(blockDim.x / kWarp);
  const int warp = WarpOfBlock();
  const int64_t chunk = blockIdx.x;
  const int64_t num_chunks = gridDim.x;
  const SlotRange range((chunk << a.shift) + warp * kRounds * kWarp, a.num_slots, kRounds * kWarp);
  const SlotIds<kRounds> ids(a.groups.experts, range);
  // Counts that are not in shared memory are those of a single warp.
  const WarpCounts counts = {a.counts_in_shared ? plan_memory : a.prefix + chunk * a.num_groups,
                             static_cast<int32_t>(a.num_groups)};
#pragma unroll 1
  for (auto i = static_cast<int32_t>(threadIdx.x); i < num_warps * counts.num_groups;
       i += static_cast<int32_t>(blockDim.x))
    counts.At(0, i) = 0;
  const bool stops = __syncthreads_or(failed) != 0;
  // That one loads rows ahead, which would keep these blocks waiting for their ids.
  cudaTriggerProgrammaticLaunchCompletion();
  if (!stops) RankChunk<kRounds>(a, range, ids, counts);
  if (IsLastBlock(&a.state->finished)) PlaceChunks(a, plan_memory, num_chunks);
}

}  // namespace moe_ep::cuda
