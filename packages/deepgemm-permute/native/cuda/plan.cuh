// The plan of a large placement: each block ranks one chunk of the slots, the last one to finish
// places the groups. Every chunk then knows where its rows begin.
#pragma once

#include <cstdint>

#include "cuda/layout_rows.cuh"
#include "cuda/place_slots.cuh"
#include "moe_ep/cuda/failure.cuh"

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

// Turns the chunks' counts of a group into sums of the chunks before; a warp calls it.
__device__ inline uint32_t SumChunks(uint32_t* counts, int64_t num_chunks) {
  constexpr int kTogether = 8;
  const int lane = Lane();
  uint32_t sum = 0;
  for (int64_t first = 0; first < num_chunks; first += kTogether * kWarp) {
    uint32_t count[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t chunk = first + i * kWarp + lane;
      count[i] = chunk < num_chunks ? __ldcg(counts + chunk) : 0;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t chunk = first + i * kWarp + lane;
      const uint32_t behind = sum + InclusiveSum(count[i], lane);
      if (chunk < num_chunks) counts[chunk] = behind - count[i];
      sum = __shfl_sync(kAllLanes, behind, kWarp - 1);
    }
  }
  return sum;
}

template <int kRounds>
__global__ void __launch_bounds__(kPlanWarps* kWarp)
    PlanKernel(const __grid_constant__ PlanArguments a) {
  extern __shared__ uint32_t shared[];
  __shared__ bool is_last;
  cudaTriggerProgrammaticLaunchCompletion();
  if (Failed(a.failure)) return;  // all blocks alike: only the last one reports
  const int num_warps = static_cast<int>(blockDim.x / kWarp);
  const int warp = WarpOfBlock();
  const int64_t chunk = blockIdx.x;
  const int64_t num_chunks = gridDim.x;
  const WarpCounts counts = a.counts_in_shared ? WarpCounts{shared, 1, a.num_groups}
                                               : WarpCounts{a.prefix + chunk, num_chunks, 0};
  // Counts that are not in shared memory are those of a single warp.
  const int64_t num_counts = a.counts_in_shared ? num_warps * a.num_groups : a.num_groups;
  for (int64_t i = threadIdx.x; i < num_counts; i += blockDim.x) counts.At(0, i) = 0;
  __syncthreads();

  const int64_t begin = (chunk << a.shift) + warp * kRounds * kWarp;
  RankedSlots<kRounds> slots;
  RankSlots<kRounds>(a.groups, begin, a.num_slots, warp, counts, &a.state->bad, &slots);
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

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&a.state->finished, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();

  const BadSlot bad = __ldcg(&a.state->bad);
  uint32_t* const totals = a.counts_in_shared ? shared : a.totals;
  if (bad == 0) {
    for (int64_t group = warp; group < a.num_groups; group += num_warps) {
      const uint32_t total = SumChunks(a.prefix + group * num_chunks, num_chunks);
      if (Lane() == 0) totals[group] = total;
    }
  }
  __syncthreads();
  if (warp != 0) return;
  if (bad != 0) {
    if (Lane() == 0)
      FailForSlot(a.failure, a.describers, a.groups.experts, SlotOf(bad), a.request.topk);
  } else if (CheckRoom(a.request, totals, a.describers, a.failure, true)) {
    PlaceGroups(a.request, a.num_groups, {totals, a.starts}, a.placement, true);
  }
  if (Lane() == 0) *a.state = PlanState{};
}

}  // namespace moe_ep::cuda
