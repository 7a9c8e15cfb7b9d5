// Sums of few tokens: a block a token, whose rows come straight into registers, all of them at
// once. Up to 32 slots a token, rows in whole vectors.
#pragma once

#include <cstdint>

#include "cuda/reduced_slots.cuh"
#include "cuda/warp.cuh"
#include "moe_ep/cuda/access.cuh"
#include "moe_ep/deepgemm_permute/cuda/reduce_rows.cuh"

namespace moe_ep::cuda {

inline constexpr int kFewThreads = 128;
inline constexpr int kFewBlocks = 4;  // on a multiprocessor

// A token's slots, a lane for each.
struct TokenSlots {
  int64_t row;  // negative: adds nothing
  float weight;
};

__device__ __forceinline__ Slot LoadSlotOfToken(const ReduceArguments& a, int64_t token) {
  if (token >= a.num_tokens || Lane() >= a.topk) return {.id = kNoExpert, .row = -1, .weight = 0};
  return LoadSlot(a, token * a.topk + Lane());
}

__device__ __forceinline__ TokenSlots Resolve(const ReduceArguments& a, const Slot& slot) {
  if (Lane() >= a.topk) return {.row = kNoRow, .weight = 0};
  return {.row = RowOf(a, slot.id, slot.row), .weight = slot.weight};
}

struct ExpertRows {
  const uint8_t* data;
  int64_t row_bytes;
};

// The rows of the lowest kRows lanes of `lanes`, which this removes.
template <int kRows>
struct Terms {
  const uint4* row[kRows];
  float weight[kRows];

  __device__ __forceinline__ Terms(const ExpertRows& rows, const TokenSlots& slots,
                                   uint32_t* lanes) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int lane = __ffs(static_cast<int>(*lanes)) - 1;
      *lanes &= *lanes - 1;
      row[r] = reinterpret_cast<const uint4*>(rows.data + __shfl_sync(kAllLanes, slots.row, lane) *
                                                              rows.row_bytes);
      weight[r] = __shfl_sync(kAllLanes, slots.weight, lane);
    }
  }
};

// The sum of kRows rows: all of them, and several vectors of each, are under way at once. A
// function of its own: together in one, the cases would keep each other out of the registers.
template <DType in, DType out, int kRows>
__device__ __noinline__ void SumAtOnce(ExpertRows rows, TokenSlots slots, uint32_t lanes,
                                       uint8_t* to, int num_vectors) {
  constexpr int kTogether = kRows > 4 ? 1 : 8 / kRows;
  constexpr int kStep = kTogether * kFewThreads;
  Terms<kRows> terms(rows, slots, &lanes);
  const auto thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int r = 0; r < kRows; ++r) terms.row[r] += thread;
  to += thread * kSumBytes<in, out>;
  // Addresses advance, so that those of one turn differ by constants.
#pragma unroll 1
  for (int left = num_vectors - thread; left > 0; left -= kStep) {
    uint4 vector[kTogether][kRows];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      // Past the end the last vector again, instead of a branch between the loads.
      const int offset = i * kFewThreads < left ? i * kFewThreads : left - 1;
#pragma unroll
      for (int r = 0; r < kRows; ++r) vector[i][r] = LoadOnce(terms.row[r] + offset);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (left <= i * kFewThreads) continue;
      float sums[kVectorElements<in>] = {};
#pragma unroll
      for (int r = 0; r < kRows; ++r) AccumulateVector<in>(sums, terms.weight[r], vector[i][r]);
      StoreSums<out>(to + i * kFewThreads * kSumBytes<in, out>, sums);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) terms.row[r] += kStep;
    to += kStep * kSumBytes<in, out>;
  }
}

// The sum of any number of rows, four at a time.
template <DType in, DType out>
__device__ __noinline__ void SumInTurns(ExpertRows rows, TokenSlots slots, uint32_t lanes,
                                        uint8_t* to, int num_vectors) {
  constexpr int kTogether = 4;
  // Lanes stay together: they hand each other the rows.
  for (int first = 0; first < num_vectors; first += kFewThreads) {
    const int v = first + static_cast<int>(threadIdx.x);
    float sums[kVectorElements<in>] = {};
    uint32_t left = lanes;
    const auto add = [&]<int kRows>() {
      const Terms<kRows> terms(rows, slots, &left);
      if (v >= num_vectors) return;
      uint4 vector[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) vector[r] = LoadOnce(terms.row[r] + v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) AccumulateVector<in>(sums, terms.weight[r], vector[r]);
    };
    while (__popc(left) >= kTogether) add.template operator()<kTogether>();
    while (left != 0) add.template operator()<1>();
    if (v < num_vectors) StoreSums<out>(to + v * kSumBytes<in, out>, sums);
  }
}

template <DType in, DType out>
__device__ __forceinline__ void SumToken(const ReduceArguments& a, int64_t token,
                                         const TokenSlots& slots) {
  const uint32_t lanes = __ballot_sync(kAllLanes, slots.row >= 0);
  uint8_t* const to = a.out + token * a.out_row_bytes;
  const ExpertRows rows{.data = a.rows, .row_bytes = a.row_bytes};
  const auto num_vectors = static_cast<int>(a.hidden / kVectorElements<in>);
  switch (__popc(lanes)) {
    case 1:
      return SumAtOnce<in, out, 1>(rows, slots, lanes, to, num_vectors);
    case 2:
      return SumAtOnce<in, out, 2>(rows, slots, lanes, to, num_vectors);
    case 3:
      return SumAtOnce<in, out, 3>(rows, slots, lanes, to, num_vectors);
    case 4:
      return SumAtOnce<in, out, 4>(rows, slots, lanes, to, num_vectors);
    case 5:
      return SumAtOnce<in, out, 5>(rows, slots, lanes, to, num_vectors);
    case 6:
      return SumAtOnce<in, out, 6>(rows, slots, lanes, to, num_vectors);
    case 7:
      return SumAtOnce<in, out, 7>(rows, slots, lanes, to, num_vectors);
    case 8:
      return SumAtOnce<in, out, 8>(rows, slots, lanes, to, num_vectors);
    default:
      return SumInTurns<in, out>(rows, slots, lanes, to, num_vectors);
  }
}

// Calls for a token's rows to come closer.
__device__ __forceinline__ void PrefetchRows(const ReduceArguments& a, const TokenSlots& slots,
                                             int64_t bytes) {
  constexpr int64_t kLine = 128;
  for (uint32_t left = __ballot_sync(kAllLanes, slots.row >= 0); left != 0; left &= left - 1) {
    const int64_t row = __shfl_sync(kAllLanes, slots.row, __ffs(static_cast<int>(left)) - 1);
    const uint8_t* const from = a.rows + row * a.row_bytes;
    for (int64_t at = threadIdx.x * kLine; at < bytes; at += kFewThreads * kLine)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  }
}

template <DType in, DType out>
__global__ void __launch_bounds__(kFewThreads, kFewBlocks)
    SumFewKernel(const __grid_constant__ ReduceArguments a) {
  int64_t token = blockIdx.x;
  TokenSlots slots = Resolve(a, LoadSlotOfToken(a, token));
  PrefetchRows(a, slots, a.hidden * 16 / kVectorElements<in>);
  if (!MayWrite(a)) return;
  while (token < a.num_tokens) {
    const int64_t next = token + gridDim.x;
    const Slot next_slot = LoadSlotOfToken(a, next);
    SumToken<in, out>(a, token, slots);
    token = next;
    slots = Resolve(a, next_slot);
  }
}

}  // namespace moe_ep::cuda
