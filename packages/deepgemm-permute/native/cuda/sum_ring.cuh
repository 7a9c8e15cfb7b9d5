// Sums of many tokens: their rows come through rings of shared memory and are added up as they
// come. Up to 32 slots a token, rows in whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/reduced_slots.cuh"
#include "cuda/warp.cuh"
#include "moe_ep/deepgemm_permute/cuda/sum_rows.cuh"

namespace moe_ep::cuda {

inline constexpr int kRingGroups = 2;  // of a block
inline constexpr int kRingBlocks = 2;  // on a multiprocessor
// Of a group. Enough to keep memory busy; with more under way it serves nothing faster.
inline constexpr int64_t kRingBytes = int64_t{24} << 10;
// Groups take tokens in order, about so many bytes of rows at a time. Memory is fastest when what
// is asked for at about the same time lies close together; for less than this, asking is what takes
// time.
inline constexpr int64_t kBatchBytes = int64_t{24} << 10;

struct SumRingArguments {
  ReduceArguments reduce;
  RowPieces pieces;
  int stages;
  int batch_tokens;
  int64_t num_batches;

  // `groups` of them share the work.
  static SumRingArguments Of(const ReduceArguments& reduce, int64_t row_bytes, int64_t groups) {
    const RowPieces pieces = RowPieces::Of(row_bytes, kMostSumBytes, kSumGranule);
    const int64_t tokens =
        std::clamp<int64_t>(std::min(kBatchBytes / row_bytes, reduce.num_tokens / (4 * groups)), 1,
                            kWarp / reduce.topk);
    return {reduce, pieces, StagesIn(kRingBytes, pieces), static_cast<int>(tokens),
            (reduce.num_tokens + tokens - 1) / tokens};
  }
};

// The loader of a group. It begins before anybody knows whether all slots are good: rows of bad
// ones are not touched, and what comes of the others is not stored then. A warp calls it.
__device__ inline void LoadBatches(const SumRingArguments& s, Ring ring, int64_t batch,
                                   int64_t step, int lane) {
  const ReduceArguments& a = s.reduce;
  const auto topk = static_cast<int>(a.topk);
  const int of_lane = lane / topk;  // the token of the batch whose slot this lane has
  const auto load = [&](int64_t from) -> Slot {
    const int64_t token = from * s.batch_tokens + of_lane;
    if (of_lane >= s.batch_tokens || token >= a.num_tokens)
      return {.id = kNoExpert, .row = -1, .weight = 0};
    return LoadSlot(a, token * topk + lane % topk);
  };
  Slot slot = load(batch);
  int64_t next = batch + step;
  for (bool first = true; batch < s.num_batches; first = false) {
    // What the next turn needs is asked for in this one.
    const Slot next_slot = load(next);
    unsigned long long claim = 0;
    if (!first && lane == 0) claim = atomicAdd(&a.state->claims, 1ull);
    const int64_t row = RowOf(a, slot.id, slot.row);
    for (int i = 0; i < s.batch_tokens; ++i) {
      const int64_t token = batch * s.batch_tokens + i;
      if (token >= a.num_tokens) break;
      ring.PushSums(s.pieces, 0, static_cast<int>(s.pieces.count), static_cast<int32_t>(token),
                    of_lane == i && row >= 0, {a.rows + row * a.row_bytes, slot.weight}, lane);
    }
    batch = next;
    slot = next_slot;
    next = first ? next + step : 3 * step + static_cast<int64_t>(__shfl_sync(kAllLanes, claim, 0));
    // The kernel before this one resets the count of claims.
    if (first) cudaGridDependencySynchronize();
  }
  ring.PushNote({Note::kEnd, 0.0f, 0, 0}, lane);
}

template <DType in, DType out>
__global__ void __launch_bounds__(kRingGroups* kGroupThreads, kRingBlocks)
    SumRingKernel(const __grid_constant__ SumRingArguments s) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ RingBarriers barriers[kRingGroups];
  const GroupPlace me;
  if (me.thread == 0) barriers[me.group].Init();
  FenceBarriers();
  __syncthreads();
  const Ring ring{barriers[me.group], shared + me.group * s.stages * s.pieces.bytes, s.pieces.bytes,
                  s.stages};
  if (me.loads())
    return LoadBatches(s, ring, int64_t{me.group} * gridDim.x + blockIdx.x,
                       int64_t{kRingGroups} * gridDim.x, me.lane);
  cudaGridDependencySynchronize();
  uint8_t* const to = Failed(s.reduce.failure) ? nullptr : s.reduce.out;
  SumRows<in, out, /*kWeighted=*/true, /*kBias=*/false>(ring, {to, s.reduce.out_row_bytes}, me,
                                                        [](const Note&) {});
}

}  // namespace moe_ep::cuda
