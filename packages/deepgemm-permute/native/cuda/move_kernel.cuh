// The kernel behind a plan: some warps of a block move rows, others do what is left beside that. It
// starts while the plan is made, where there is room, and loads the first rows meanwhile.
#pragma once

#include <cstdint>

#include "cuda/layout_rows.cuh"
#include "cuda/move_rows.cuh"
#include "cuda/plan.cuh"
#include "cuda/row_tiles.cuh"
#include "cuda/scale_tiles.cuh"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/deepgemm_permute/local_experts.h"

namespace moe_ep::cuda {

// Warps of a block beside the movers.
inline constexpr int kHelpers = ScaleTiles::kThreads / kWarp;

struct MoveKernelArguments {
  MoveArguments move;
  ScaleTiles scales;  // no tiles: scales travel with rows, or there are none
  TileWork work;
  LocalExperts experts;
  ChunkedRows rows;
  const moe_ep_failure_record* failure;
  int32_t tiles_at;  // behind the movers' shared memory
};

// Neighbouring pieces of work go to different blocks.
template <typename Mover>
__global__ void __launch_bounds__((Mover::kMovers + kHelpers) * kWarp, 1)
    MoveKernel(const __grid_constant__ MoveKernelArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = WarpOfBlock();
  const bool moves = warp < Mover::kMovers;
  const int64_t index = int64_t{warp} * gridDim.x + blockIdx.x;
  const int64_t num_movers = int64_t{Mover::kMovers} * gridDim.x;
  // Others than movers have no batch.
  FirstBatches first(a.move, moves ? index : a.move.num_batches, num_movers);
  Mover mover(a.move, shared, warp);
  if (moves) {
    // Inputs are there: the plan let this kernel start when what was ahead of it had ended.
    mover.Start();
    first.Find([&](int64_t slot) { return a.experts[slot] >= 0; });
    mover.Preload(index, first.needed[0], Mover::kAtOnce);
    mover.Preload(index + num_movers, first.needed[1], Mover::kAtOnce);
  }
  cudaGridDependencySynchronize();
  first.LoadWords(a.rows);
  const bool placed = !FailedForBlock(a.failure);
  if (moves) {
    if (!placed) return mover.Abandon();
    MoveBatches(mover, a.rows, first, index, num_movers);
  } else if (placed) {
    const int helper = warp - Mover::kMovers;
    const TileTeam team = {
        .memory = reinterpret_cast<ScaleTileMemory*>(shared + a.tiles_at),
        .thread = helper * kWarp + Lane(),
    };
#pragma unroll 1
    for (int64_t tile = blockIdx.x; tile < a.scales.num_tiles; tile += gridDim.x)
      MoveScaleTile(a.rows, a.scales, team, tile);
    Help(a.rows, a.work, int64_t{helper} * gridDim.x + blockIdx.x, int64_t{kHelpers} * gridDim.x);
    // So that who comes next is there when this ends. It waits for that before it does anything.
    cudaTriggerProgrammaticLaunchCompletion();
  }
}

}  // namespace moe_ep::cuda
