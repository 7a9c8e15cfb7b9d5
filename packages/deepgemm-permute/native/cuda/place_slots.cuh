// Ranks of slots inside their groups, and where the groups' rows begin.
#pragma once

#include <cstdint>

#include "cuda/bad_slot.cuh"
#include "cuda/warp.cuh"
#include "requests.h"
#include "slot_groups.h"

namespace moe_ep::cuda {

// How many slots of each group each warp of a block has.
struct WarpCounts {
  uint32_t* counts;
  int64_t group_stride;
  int64_t warp_stride;

  __device__ __forceinline__ uint32_t& At(int warp, int64_t group) const {
    return counts[group * group_stride + warp * warp_stride];
  }
};

// The slots of one warp, a lane's in rounds: kNoExpert or a group, and the number of earlier slots
// of the same group, at first in the warp.
template <int kRounds>
struct RankedSlots {
  int32_t group[kRounds];
  uint32_t rank[kRounds];
};

// Ids of slots [begin, end) of a warp, at most 32 * kRounds: a long way to memory, which other work
// can go beside.
template <int kRounds>
struct SlotIds {
  int64_t id[kRounds];

  __device__ __forceinline__ SlotIds(const SlotGroups& groups, int64_t begin, int64_t end) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int64_t slot = begin + r * kWarp + Lane();
      id[r] = slot < end ? groups.experts.Id(slot) : kNoExpert;
    }
  }
};

// Ranks these slots and counts them. Bad slots are noted.
template <int kRounds>
__device__ __forceinline__ void RankSlots(const SlotGroups& groups, const SlotIds<kRounds>& ids,
                                          int64_t begin, int64_t end, int warp,
                                          const WarpCounts& counts, BadSlot* bad,
                                          RankedSlots<kRounds>* slots) {
  const int lane = Lane();
  // All map entries first.
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int64_t slot = begin + r * kWarp + lane;
    int64_t group = slot < end ? groups.OfId(ids.id[r]) : kNoExpert;
    if (group == kInvalidExpert) {
      NoteBadSlot(bad, slot);
      group = kNoExpert;
    }
    slots->group[r] = static_cast<int32_t>(group);
  }
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (begin + r * kWarp >= end) break;  // the same in all lanes
    const int32_t group = slots->group[r];
    const uint32_t same = __match_any_sync(kAllLanes, group);
    const uint32_t before = group < 0 ? 0 : counts.At(warp, group);
    slots->rank[r] = before + __popc(same & LanesBelow(lane));
    __syncwarp();
    if (group >= 0 && (same & LanesBelow(lane)) == 0)
      counts.At(warp, group) = before + __popc(same);
    __syncwarp();
  }
}

// Turns the counts of a block's warps into the ranks that their first slots have in the block, and
// calls total(group, count). Between block barriers.
template <typename Total>
__device__ __forceinline__ void StartWarps(const WarpCounts& counts, int num_warps,
                                           int64_t num_groups, const Total& total) {
  for (int64_t group = threadIdx.x; group < num_groups; group += blockDim.x) {
    uint32_t sum = 0;
    for (int warp = 0; warp < num_warps; ++warp) {
      const uint32_t count = counts.At(warp, group);
      counts.At(warp, group) = sum;
      sum += count;
    }
    total(group, sum);
  }
}

// Where the rows of the groups go; `starts` has an entry more than there are groups.
struct GroupPlaces {
  const uint32_t* totals;
  int32_t* starts;
};

// Checks counts and room; one warp calls it. Where they will not do it reports the failure, if
// `reports`, and returns false.
__device__ inline bool CheckRoom(const PlacementRequest& request, const uint32_t* totals,
                                 const Describers& describers, moe_ep_failure_record* failure,
                                 bool reports) {
  const int64_t num_local = request.experts.num_local;
  const int lane = Lane();
  int64_t first_short = num_local;  // the first expert with too few reserved rows
  int64_t needed = 0;
  uint64_t fullest = 0;  // the count, then the complement of the expert: the first one wins
  for (int64_t expert = lane; expert < num_local; expert += kWarp) {
    const int64_t total = totals[expert];
    if (request.reserved != nullptr && request.reserved[expert] < total && first_short > expert)
      first_short = expert;
    needed += request.RowsOf(expert, total);
    const uint64_t key =
        (static_cast<uint64_t>(total) << 32) | (0xffffffffu - static_cast<uint32_t>(expert));
    if (key > fullest) fullest = key;
  }
  first_short = ReduceLanes(first_short, [](int64_t a, int64_t b) { return a < b ? a : b; });
  needed = ReduceLanes(needed, [](int64_t a, int64_t b) { return a + b; });
  fullest = ReduceLanes(fullest, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
  reports = reports && lane == 0;
  if (first_short < num_local) {
    if (reports)
      Fail(failure, describers.reserved, totals[first_short], first_short,
           request.reserved[first_short]);
    return false;
  }
  if (request.rows_per_expert > 0) {
    const auto most = static_cast<int64_t>(fullest >> 32);
    if (most <= request.rows_per_expert) return true;
    if (reports)
      Fail(failure, describers.masked_capacity, request.rows_per_expert, most,
           static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(fullest)));
    return false;
  }
  if (needed <= request.capacity) return true;
  if (reports) Fail(failure, describers.capacity, request.capacity, needed);
  return false;
}

// Gives every group its first row, and, if `writes`, the caller the experts' places; one warp calls
// it.
__device__ inline void PlaceGroups(const PlacementRequest& request, int64_t num_groups,
                                   const GroupPlaces& places, const Placement& placement,
                                   bool writes) {
  const int64_t num_local = request.experts.num_local;
  const int lane = Lane();
  int64_t next = 0;
  for (int64_t first = 0; first < num_groups; first += kWarp) {
    const int64_t group = first + lane;
    const int64_t total = group < num_groups ? places.totals[group] : 0;
    const bool local = group < num_local;
    const int64_t rows = local ? request.RowsOf(group, total) : total;
    const int64_t behind = next + InclusiveSum(rows, lane);
    const int64_t start = behind - rows;
    if (group < num_groups) places.starts[group] = static_cast<int32_t>(start);
    if (writes && local) {
      placement.expert_num_tokens[group] = static_cast<int32_t>(total);
      if (placement.expert_start != nullptr) {
        placement.expert_start[group] = start;
        if (group == num_local - 1) placement.expert_start[num_local] = behind;
      }
      if (placement.expert_end != nullptr)
        placement.expert_end[group] = static_cast<int32_t>(start + total);
    }
    next = __shfl_sync(kAllLanes, behind, kWarp - 1);
  }
  if (lane == 0) places.starts[num_groups] = static_cast<int32_t>(next);
}

}  // namespace moe_ep::cuda
