// Ranks of slots inside their groups, and where the groups' rows begin.
#pragma once

#include <cstdint>

#include "cuda/bad_slot.cuh"
#include "cuda/warp.cuh"
#include "requests.h"
#include "slot_groups.h"

namespace moe_ep::cuda {

// How many slots of each group each warp of a block has: [warps, groups].
struct WarpCounts {
  uint32_t* counts;
  int32_t num_groups;

  __device__ __forceinline__ uint32_t& At(int warp, int32_t group) const {
    return counts[warp * num_groups + group];
  }
};

// The slots of one warp, a lane's in rounds: kNoExpert or a group, and the number of earlier slots
// of the same group, at first in the warp.
template <int kRounds>
struct RankedSlots {
  int32_t group[kRounds];
  uint32_t rank[kRounds];
};

// A warp's slots: `count` from `begin` on, at most 32 * kRounds.
struct SlotRange {
  int64_t begin;
  int32_t count;

  __device__ __forceinline__ SlotRange(int64_t first, int64_t behind, int32_t most)
      : begin(first),
        count(first >= behind         ? 0
              : behind - first > most ? most
                                      : static_cast<int32_t>(behind - first)) {}
  // Whether this lane has a slot in a round.
  __device__ __forceinline__ bool Has(int round) const { return round * kWarp + Lane() < count; }
  __device__ __forceinline__ int64_t Slot(int round) const {
    return begin + Lane() + round * kWarp;
  }
};

// Their ids: a long way to memory, which other work can go beside.
template <int kRounds>
struct SlotIds {
  int64_t id[kRounds];

  __device__ __forceinline__ SlotIds(const LocalExperts& experts, const SlotRange& range) {
    if (experts.wide) {
      Load(static_cast<const int64_t*>(experts.ids) + range.Slot(0), range);
    } else {
      Load(static_cast<const int32_t*>(experts.ids) + range.Slot(0), range);
    }
  }

 private:
  template <typename Id>
  __device__ __forceinline__ void Load(const Id* ids, const SlotRange& range) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) id[r] = range.Has(r) ? __ldg(ids + r * kWarp) : kNoExpert;
  }
};

// Ranks these slots and counts them. Bad slots are noted.
template <int kRounds>
__device__ __forceinline__ void RankSlots(const SlotGroups& groups, const SlotIds<kRounds>& ids,
                                          const SlotRange& range, int warp,
                                          const WarpCounts& counts, BadSlot* bad,
                                          RankedSlots<kRounds>* slots) {
  const int lane = Lane();
  // All map entries first.
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    int64_t group = range.Has(r) ? groups.OfId(ids.id[r]) : kNoExpert;
    if (group == kInvalidExpert) {
      NoteBadSlot(bad, range.Slot(r));
      group = kNoExpert;
    }
    slots->group[r] = static_cast<int32_t>(group);
  }
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    if (r * kWarp >= range.count) break;  // the same in all lanes
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
                                           const Total& total) {
#pragma unroll 1
  for (auto group = static_cast<int32_t>(threadIdx.x); group < counts.num_groups;
       group += static_cast<int32_t>(blockDim.x)) {
    uint32_t sum = 0;
#pragma unroll 4
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

// Says why groups do not fit, where PlaceGroups has found that they do not; one warp calls it.
__device__ inline void FailForRoom(const PlacementRequest& request, const uint32_t* totals,
                                   const Describers& describers, moe_ep_failure_record* failure) {
  const int64_t num_local = request.experts.num_local;
  const int lane = Lane();
  int64_t first_short = num_local;  // the first expert with too few reserved rows
  int64_t needed = 0;
  uint64_t fullest = 0;  // the count, then the complement of the expert: the first one wins
#pragma unroll 1
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
  __syncwarp();  // totals are those of other lanes, too
  if (lane != 0) return;
  if (first_short < num_local) {
    Fail(failure, describers.reserved, totals[first_short], first_short,
         request.reserved[first_short]);
  } else if (request.rows_per_expert > 0) {
    Fail(failure, describers.masked_capacity, request.rows_per_expert,
         static_cast<int64_t>(fullest >> 32),
         static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(fullest)));
  } else {
    Fail(failure, describers.capacity, request.capacity, needed);
  }
}

// Gives every group its first row; false where rows will not do. One warp calls it, and it is on
// the way of everything else.
__device__ __forceinline__ bool PlaceGroups(const PlacementRequest& request, int64_t num_groups,
                                            const GroupPlaces& places) {
  const int64_t num_local = request.experts.num_local;
  const int lane = Lane();
  bool fits = true;
  int64_t next = 0;
#pragma unroll 1
  for (int64_t first = 0; first < num_groups; first += kWarp) {
    const int64_t group = first + lane;
    const int64_t total = group < num_groups ? places.totals[group] : 0;
    int64_t rows = total;
    if (group < num_local) {
      rows = request.RowsOf(group, total);
      if (request.reserved != nullptr && request.reserved[group] < total) fits = false;
      if (request.rows_per_expert > 0 && request.rows_per_expert < total) fits = false;
    }
    const int64_t behind = next + InclusiveSum(rows, lane);
    if (group < num_groups) places.starts[group] = static_cast<int32_t>(behind - rows);
    if (group < num_local && request.rows_per_expert == 0 && behind > request.capacity)
      fits = false;
    next = __shfl_sync(kAllLanes, behind, kWarp - 1);
  }
  if (lane == 0) places.starts[num_groups] = static_cast<int32_t>(next);
  return __all_sync(kAllLanes, fits) != 0;
}

// Gives the caller the places of the experts, once PlaceGroups has ended: thread `thread` of
// `num_threads` its share.
__device__ __forceinline__ void WritePlaces(const PlacementRequest& request,
                                            const GroupPlaces& places, const Placement& placement,
                                            int thread, int num_threads) {
  const int64_t num_local = request.experts.num_local;
#pragma unroll 1
  for (int64_t expert = thread; expert <= num_local; expert += num_threads) {
    const int32_t start = places.starts[expert];
    if (placement.expert_start != nullptr) placement.expert_start[expert] = start;
    if (expert == num_local) break;
    const auto total = static_cast<int32_t>(places.totals[expert]);
    placement.expert_num_tokens[expert] = total;
    if (placement.expert_end != nullptr) placement.expert_end[expert] = start + total;
  }
}

}  // namespace moe_ep::cuda
