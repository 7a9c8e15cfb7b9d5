// The plan of a large placement: each block ranks one chunk of the slots, the last one to finish
// places the groups. Every chunk then knows where its rows begin.
#pragma once

#include <cstdint>

#include "cuda/layout_rows.cuh"
#include "cuda/place_slots.cuh"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/last_block.cuh"

namespace moe_ep::cuda {

// Of a block. Few enough threads and registers that the blocks that move rows fit beside them.
inline constexpr int kPlanWarps = 16;

// Zero between commands.
struct PlanState {
  unsigned int finished;  // blocks
  BadSlot bad;
  unsigned long long claims;  // of the kernel that moves rows
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
  uint32_t* prefix;  // [num_groups, num_chunks]
  uint32_t* totals;  // [num_groups]; used where counts are not in shared memory
  int32_t* starts;   // [num_groups + 1]
  uint32_t* words;   // [num_slots]; null where only counts are asked for

  __host__ __device__ int64_t num_chunks() const {
    const int64_t slots = (num_slots + (int64_t{1} << shift) - 1) >> shift;
    return slots > 0 ? slots : 1;
  }
};

// Turns the chunks' counts of groups `first`, `first + step` and so on into sums of the chunks
// before, and calls total(group, sum); a warp calls it. Several groups' counts are under way at
// once.
template <typename Total>
__device__ inline void SumChunks(uint32_t* prefix, int64_t num_groups, int64_t num_chunks,
                                 int64_t first, int64_t step, const Total& total) {
  constexpr int kGroups = 2;
  constexpr int kTogether = 8;
  const int lane = Lane();
  for (; first < num_groups; first += kGroups * step) {
    uint32_t sum[kGroups] = {};
    for (int64_t begin = 0; begin < num_chunks; begin += kTogether * kWarp) {
      uint32_t count[kGroups][kTogether];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int64_t group = first + g * step;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int64_t chunk = begin + i * kWarp + lane;
          count[g][i] = group < num_groups && chunk < num_chunks
                            ? __ldcg(prefix + group * num_chunks + chunk)
                            : 0;
        }
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int64_t group = first + g * step;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (begin + i * kWarp >= num_chunks) break;  // the same in all lanes
          const int64_t chunk = begin + i * kWarp + lane;
          const uint32_t behind = sum[g] + InclusiveSum(count[g][i], lane);
          if (group < num_groups && chunk < num_chunks)
            prefix[group * num_chunks + chunk] = behind - count[g][i];
          sum[g] = __shfl_sync(kAllLanes, behind, kWarp - 1);
        }
      }
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      if (first + g * step < num_groups && lane == 0) total(first + g * step, sum[g]);
  }
}

// What the last block does: sums over chunks, checks, places of groups. It is on the way of
// everything else, so what it reads is asked for before anything waits.
__device__ inline void PlaceChunks(const PlanArguments& a, uint32_t* shared, int64_t num_chunks) {
  const int num_warps = static_cast<int>(blockDim.x / kWarp);
  const int warp = WarpOfBlock();
  const int64_t num_local = a.request.experts.num_local;
  uint32_t* const totals = a.counts_in_shared ? shared : a.totals;
  // Behind the totals, where counts of other warps were.
  const bool copies = a.counts_in_shared && num_warps > 1 && a.request.reserved != nullptr &&
                      num_local <= blockDim.x;
  const bool copies_one = copies && threadIdx.x < num_local;
  const int32_t reserved = copies_one ? __ldg(a.request.reserved + threadIdx.x) : 0;
  const BadSlot bad = __ldcg(&a.state->bad);
  SumChunks(a.prefix, a.num_groups, num_chunks, warp, num_warps,
            [&](int64_t group, uint32_t total) { totals[group] = total; });
  if (copies_one) shared[a.num_groups + threadIdx.x] = static_cast<uint32_t>(reserved);
  __syncthreads();
  if (warp != 0) return;
  PlacementRequest request = a.request;
  if (copies) request.reserved = reinterpret_cast<const int32_t*>(shared + a.num_groups);
  if (bad != 0) {
    if (Lane() == 0)
      FailForSlot(a.failure, a.describers, a.groups.experts, SlotOf(bad), a.request.topk);
  } else if (CheckRoom(request, totals, a.describers, a.failure, true)) {
    PlaceGroups(request, a.num_groups, {totals, a.starts}, a.placement, true);
  }
  if (Lane() == 0) *a.state = PlanState{};
}

template <int kRounds>
__global__ void __launch_bounds__(kPlanWarps* kWarp)
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
  const int64_t begin = (chunk << a.shift) + warp * kRounds * kWarp;
  const SlotIds<kRounds> ids(a.groups, begin, a.num_slots);
  const WarpCounts counts = a.counts_in_shared ? WarpCounts{plan_memory, 1, a.num_groups}
                                               : WarpCounts{a.prefix + chunk, num_chunks, 0};
  // Counts that are not in shared memory are those of a single warp.
  const int64_t num_counts = a.counts_in_shared ? num_warps * a.num_groups : a.num_groups;
  for (int64_t i = threadIdx.x; i < num_counts; i += blockDim.x) counts.At(0, i) = 0;
  if (__syncthreads_or(failed) != 0) return;  // all blocks alike: only the last one reports

  RankedSlots<kRounds> slots;
  RankSlots<kRounds>(a.groups, ids, begin, a.num_slots, warp, counts, &a.state->bad, &slots);
  __syncthreads();
  StartWarps(counts, num_warps, a.num_groups,
             [&](int64_t group, uint32_t total) { a.prefix[group * num_chunks + chunk] = total; });
  __syncthreads();
  if (a.words != nullptr) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int64_t slot = begin + r * kWarp + Lane();
      if (slot >= a.num_slots) break;
      const int32_t group = slots.group[r];
      // A single warp's ranks are the block's already, and its counts may lie where totals do.
      const uint32_t before = group < 0 || num_warps == 1 ? 0 : counts.At(warp, group);
      a.words[slot] = group < 0
                          ? ChunkedRows::kNoWord
                          : (static_cast<uint32_t>(group) << a.shift) | (before + slots.rank[r]);
    }
  }
  // That one loads rows ahead, which would keep these blocks waiting for their ids.
  cudaTriggerProgrammaticLaunchCompletion();
  if (IsLastBlock(&a.state->finished)) PlaceChunks(a, plan_memory, num_chunks);
}

}  // namespace moe_ep::cuda
