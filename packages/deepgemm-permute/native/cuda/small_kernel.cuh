// Small inputs take one launch: every block works out the whole placement for itself and moves its
// share.
#pragma once

#include <cstdint>

#include "cuda/layout_rows.cuh"
#include "cuda/move_rows.cuh"
#include "cuda/plan.cuh"
#include "cuda/row_tiles.cuh"
#include "moe_ep/cuda/failure.cuh"

namespace moe_ep::cuda {

// Small: up to so many slots, and groups that 16 warps can count in shared memory.
inline constexpr int kSmallWarps = 16;
inline constexpr int kSmallRounds = 4;
inline constexpr int64_t kSmallSlots = kSmallWarps * kSmallRounds * kWarp;
inline constexpr int64_t kSmallGroups = 512;
// Rows of so few tokens are loaded before anybody knows whether they are needed.
inline constexpr int64_t kEagerTokens = 512;

struct SmallKernelArguments {
  PlanArguments plan;
  MoveArguments move;
  TileWork work;
};

template <typename Mover>
inline constexpr int kSmallHelpers = kSmallWarps - Mover::kMovers;

// Shared memory behind the mover's.
struct SmallMemory {
  int32_t* rows;
  uint32_t* counts;  // [kSmallWarps, groups]
  uint32_t* totals;
  int32_t* starts;

  static int64_t Bytes(int64_t num_slots, int64_t num_groups) {
    return 4 * (num_slots + (kSmallWarps + 2) * num_groups + 1);
  }
  __device__ SmallMemory(uint8_t* memory, int64_t num_slots, int64_t num_groups)
      : rows(reinterpret_cast<int32_t*>(memory)),
        counts(reinterpret_cast<uint32_t*>(rows + num_slots)),
        totals(counts + kSmallWarps * num_groups),
        starts(reinterpret_cast<int32_t*>(totals + num_groups)) {}
};

// The whole placement, the same in every block; false where something was wrong.
__device__ inline bool PlaceInBlock(const PlanArguments& a, const SmallMemory& memory) {
  __shared__ BadSlot bad;
  __shared__ bool fits;
  const bool reports = blockIdx.x == 0;
  const int warp = WarpOfBlock();
  const WarpCounts counts{memory.counts, static_cast<int32_t>(a.num_groups)};
  // Whole rounds for every warp.
  const int64_t rounds = (a.num_slots + kSmallWarps * kWarp - 1) / (kSmallWarps * kWarp);
  const SlotRange range(warp * rounds * kWarp, a.num_slots, static_cast<int32_t>(rounds * kWarp));
  const SlotIds<kSmallRounds> ids(a.groups.experts, range);
  for (int64_t i = threadIdx.x; i < kSmallWarps * a.num_groups; i += blockDim.x)
    memory.counts[i] = 0;
  if (threadIdx.x == 0) bad = 0;
  __syncthreads();

  RankedSlots<kSmallRounds> slots;
  RankSlots<kSmallRounds>(a.groups, ids, range, warp, counts, &bad, &slots);
  __syncthreads();
  StartWarps(counts, kSmallWarps,
             [&](int64_t group, uint32_t total) { memory.totals[group] = total; });
  __syncthreads();
  const GroupPlaces places = {memory.totals, memory.starts};
  if (warp == 0) {
    const bool good = bad == 0;
    const bool ok = good && PlaceGroups(a.request, a.num_groups, places);
    if (!ok && reports) [[unlikely]] {
      if (good) {
        FailForRoom(a.request, memory.totals, a.describers, a.failure);
      } else if (Lane() == 0) {
        FailForSlot(a.failure, a.describers, a.groups.experts, SlotOf(bad), a.request.topk);
      }
    }
    if (Lane() == 0) fits = ok;
  }
  __syncthreads();
  if (!fits) return false;
  if (reports)
    WritePlaces(a.request, places, a.placement, static_cast<int>(threadIdx.x),
                static_cast<int>(blockDim.x));
#pragma unroll
  for (int r = 0; r < kSmallRounds; ++r) {
    if (!range.Has(r)) break;
    const int32_t group = slots.group[r];
    memory.rows[range.Slot(r)] =
        group < 0
            ? -1
            : memory.starts[group] + static_cast<int32_t>(counts.At(warp, group) + slots.rank[r]);
  }
  __syncthreads();
  return true;
}

template <typename Mover>
__global__ void __launch_bounds__(kSmallWarps* kWarp, 1)
    SmallKernel(const __grid_constant__ SmallKernelArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  if (__syncthreads_or(Failed(a.plan.failure)) != 0) return;
  const int warp = WarpOfBlock();
  const int64_t index = int64_t{warp} * gridDim.x + blockIdx.x;
  const SmallMemory memory(shared + Mover::SharedBytes(a.move.stage_bytes), a.plan.num_slots,
                           a.plan.num_groups);
  const SharedRows rows{memory.rows,
                        {memory.starts, reinterpret_cast<const int32_t*>(memory.totals),
                         a.plan.request.experts.num_local},
                        a.plan.num_slots};
  const bool moves = warp < Mover::kMovers;
  const int64_t num_movers = int64_t{Mover::kMovers} * gridDim.x;
  const bool eager = a.move.num_tokens <= kEagerTokens;
  // Others than movers have no batch.
  FirstBatches first(a.move, moves ? index : a.move.num_batches, num_movers);
  Mover mover(a.move, shared, warp);
  if (moves) {
    mover.Start();
    if (eager) {
      first.Find([](int64_t) { return true; });
      // All at once: these warps find places, too, and must not wait.
      mover.Preload(index, first.needed[0], INT32_MAX);
      mover.Preload(index + num_movers, first.needed[1], INT32_MAX);
    }
  }
  const bool placed = PlaceInBlock(a.plan, memory);
  if (moves) {
    if (!placed) return mover.Abandon();
    if (!eager) first.Find([&](int64_t slot) { return rows.LocalRowOfWord(0, slot) >= 0; });
    MoveBatches(mover, rows, first, index, num_movers);
  } else if (placed) {
    const int helper = warp - Mover::kMovers;
    Help(rows, a.work, int64_t{helper} * gridDim.x + blockIdx.x,
         int64_t{kSmallHelpers<Mover>} * gridDim.x);
  }
}

}  // namespace moe_ep::cuda
