// The receive phase of combine: once all ranks have answered, warps sum up tokens.
#pragma once

#include "cuda/combine.cuh"
#include "cuda/result_formats.cuh"

namespace moe_ep::cuda {

// The first selection that this thread finds whose id is no expert's, or -1: placement knows no
// ids but experts' and -1.
__device__ inline int64_t FindInvalid(const CombineArguments& a) {
#pragma unroll 1
  for (auto i = static_cast<int>(threadIdx.x); i < a.tokens * a.topk; i += kThreads)
    if (IsInvalidId(a.ids[i], a.placement.experts)) return i;
  return -1;
}

// Reports the first of what threads found. All threads of a block call it.
__device__ inline void ReportInvalid(const CombineArguments& a, int64_t found) {
  __shared__ unsigned long long first;
  if (threadIdx.x == 0) first = ~0ull;
  __syncthreads();
  if (found >= 0) atomicMin(&first, static_cast<unsigned long long>(found));
  __syncthreads();
  if (threadIdx.x == 0 && first != ~0ull) {
    const auto at = static_cast<int64_t>(first);
    Fail(a.patience.failure, a.describe_id, a.buffer.rank(), at / a.topk, a.ids[at],
         a.placement.experts);
  }
  __syncthreads();
}

// What a lane knows of the token's slot with its number.
struct Selection {
  int64_t id = -1;
  float weight = 0.0f;  // where this end applies it

  __device__ __forceinline__ static Selection Of(const CombineArguments& a, int64_t token) {
    const int lane = threadIdx.x % kLanes;
    Selection s;
    if (lane < a.topk) s.id = a.ids[token * a.topk + lane];
    if (lane < a.topk && !a.weighted) s.weight = a.weights[token * a.topk + lane];
    return s;
  }
};

// A piece of a token's sum. A warp calls it.
template <typename Results>
__device__ void SumPiece(const CombineArguments& a, RankBits present, int64_t token, int piece,
                         const Selection& selection) {
  const int lane = threadIdx.x % kLanes;
  const int64_t id = selection.id;
  uint32_t terms;
  if (a.weighted) {
    // One row from each rank that the token went to, in the order of ranks.
    const uint32_t ranks = __reduce_or_sync(kAllLanes, id >= 0 ? 1u << a.placement.RankOf(id) : 0u);
    // Rows have places for all these ranks, also for those whose rows have not come.
    const bool here = (ranks >> lane & 1u) != 0 && TakesPart(present, lane);
    const int place =
        a.buffer.layout.results_by_rank != 0 ? lane : __popc(ranks & ((1u << lane) - 1u));
    terms = __reduce_or_sync(kAllLanes, here ? 1u << place : 0u);
  } else {
    const int owner = id >= 0 ? static_cast<int>(a.placement.RankOf(id)) : 0;
    terms = __ballot_sync(kAllLanes, id >= 0 && TakesPart(present, owner));
  }
  const int at = piece * Results::kSummed * kLanes + lane;
  const uint16_t* const rows = a.buffer.Result(a.buffer.rank(), token, 0);
  const int64_t distance = a.buffer.layout.max_hidden;
  ColumnSum sums[Results::kSummed];
  const bool has_terms = terms != 0;
  while (terms != 0) {
    typename Results::Terms asked(a.hidden, at);
    uint32_t left = terms;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int term = __ffs(static_cast<int>(left)) - 1;
      if (left != 0) asked.Ask(i, rows + term * distance);
      left &= left - 1;
    }
    asked.Arrive();
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (terms == 0) break;
      const int term = __ffs(static_cast<int>(terms)) - 1;
      terms &= terms - 1;
      const float weight = __shfl_sync(kAllLanes, selection.weight, term);
      asked.AddTo(sums, i, a.weighted ? 1.0f : weight);
    }
  }
#pragma unroll
  for (int i = 0; i < Results::kSummed; ++i)
    if (at + i * kLanes < a.vectors())
      reinterpret_cast<uint4*>(a.out + token * a.hidden)[at + i * kLanes] =
          has_terms ? sums[i].Rounded() : uint4{};
}

// Whether all ranks have results and encode them alike; else the first block reports who does not.
// All ranks, and all blocks, find the same. `notes`: of each rank's results. A warp calls it.
__device__ inline bool CheckNotes(const CombineArguments& a, RankBits present, const int* notes) {
  const auto lane = static_cast<int>(threadIdx.x % kLanes);
  const bool has = lane < a.buffer.ranks() && TakesPart(present, lane);
  const int own = has ? notes[lane] : 0;
  const int base = __ffs(static_cast<int>(__ballot_sync(kAllLanes, has))) - 1;
  const int first = __shfl_sync(kAllLanes, own, base);
  const uint32_t refused = __ballot_sync(kAllLanes, own >= kRefusal);
  const uint32_t others = __ballot_sync(kAllLanes, has && own != first);
  const uint32_t wrong = refused != 0 ? refused : others;
  if (blockIdx.x == 0 && lane == __ffs(static_cast<int>(wrong)) - 1) {
    if (refused != 0) {
      Fail(a.patience.failure, a.describe_refusal, lane, own - kRefusal);
    } else {
      Fail(a.patience.failure, a.describe_encodings, first, own, lane, base);
    }
  }
  return wrong == 0;
}

template <typename Results>
__device__ void SumAll(const CombineArguments& a, const SlotState& state, uint64_t begin_ns,
                       bool ok) {
  __shared__ int notes[kMostRanks];
  // Looked for before the wait and told behind it: all blocks have answered then.
  const int64_t invalid = FindInvalid(a);
  constexpr int kPiece = Results::kSummed * kLanes;
  const int pieces = (a.vectors() + kPiece - 1) / kPiece;
  const auto units = static_cast<int>(a.tokens * pieces);
  int unit = threadIdx.x / kLanes * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  // As are the first token's selections.
  Selection selection;
  if (unit < units) selection = Selection::Of(a, unit / pieces);
  RankBits present = state.present & a.buffer.Unmasked();
  ok =
      WaitForAll(a.buffer, a.patience, begin_ns,
                 {SignalKind::kResults, SignalOf(state.epoch, 0), StepOf(state.epoch, Wait::kToSum),
                  Operation::kLowLatencyCombine, Missing::kRows},
                 ok, &present, blockIdx.x == 0 ? a.wait_stats : nullptr, notes);
  LetNextBegin();
  if (ok) {
    const bool alike = threadIdx.x >= kLanes || CheckNotes(a, present, notes);
    ok = __syncthreads_and(alike && invalid < 0) != 0;
    // Behind what all ranks find, which is reported if there is such a thing.
    if (!ok && blockIdx.x == 0) ReportInvalid(a, invalid);
  }
  if (ok) {
    while (unit < units) {
      const int next = unit + kWarps * static_cast<int>(gridDim.x);
      Selection of_next;
      if (next < units) of_next = Selection::Of(a, next / pieces);
      SumPiece<Results>(a, present, unit / pieces, unit % pieces, selection);
      unit = next;
      selection = of_next;
    }
  }
  if (IsArriving()) {
    Arrive(a.arrived + 1, !ok, [&](unsigned failed) {
      if (failed > 0) SnapshotFailure(a.patience.failure, a.snapshot);
    });
  }
}

}  // namespace moe_ep::cuda
