// The send phase of combine: warps answer messages, straight into the results of their sources.
#pragma once

#include "cuda/combine.cuh"
#include "cuda/result_formats.cuh"

namespace moe_ep::cuda {

// A token of a source that has an expert here.
struct Message {
  int source;
  int index;   // among those of the source
  int origin;  // source * max_tokens + token; -1: there is none
};

// What a lane knows of the slot with its number of a message's token.
struct Owed {
  int id = -1;
  int row = -1;
  float weight = 0.0f;

  __device__ __forceinline__ static Owed Of(const CombineArguments& a, const Message& message) {
    const int lane = threadIdx.x % kLanes;
    Owed owed;
    if (message.origin < 0 || lane >= a.topk) return owed;
    const int rank = a.buffer.rank();
    const int64_t token = message.origin - message.source * a.buffer.layout.max_tokens;
    const int64_t entry = token * a.stride() + lane;
    owed.id = __ldcg(a.buffer.Ids(rank, message.source) + entry);
    if (!a.rank_major) owed.row = a.rows[int64_t{message.origin} * a.stride() + lane];
    if (a.weighted) owed.weight = __ldcg(a.buffer.Weights(rank, message.source) + entry);
    return owed;
  }
};

// Asks for a piece of a row; zeros behind its end.
__device__ __forceinline__ void AskFor(const CombineArguments& a, int64_t row, int at,
                                       uint4 (&v)[kAnswered]) {
  const auto* const from = reinterpret_cast<const uint4*>(a.x + row * a.hidden);
#pragma unroll
  for (int i = 0; i < kAnswered; ++i)
    v[i] = at + i * kLanes < a.vectors() ? __ldg(from + at + i * kLanes) : uint4{};
}

// A piece of what this rank owes one token of a source: its row, rank-major; else the sum of its
// rows where weights are known here, and without them a row for each selection. A warp calls it.
template <typename Results>
__device__ __forceinline__ void Answer(const CombineArguments& a, const Message& message,
                                       const Owed& owed, int piece,
                                       typename Results::Shared* shared) {
  const DeviceBuffer& buffer = a.buffer;
  const int lane = threadIdx.x % kLanes;
  const int at = piece * kAnswered * kLanes + lane;
  const int source = message.source;
  const int64_t token = message.origin - source * buffer.layout.max_tokens;
  const int rank = buffer.rank();
  // How many lower ranks answer for this token, too; or this rank.
  const int64_t owner = owed.id >= 0 ? a.placement.RankOf(owed.id) : rank;
  const uint32_t lower = __reduce_or_sync(kAllLanes, owner < rank ? 1u << owner : 0u);
  const int place = buffer.layout.results_by_rank != 0 ? rank : __popc(lower);
  uint32_t left = a.rank_major ? 0 : __ballot_sync(kAllLanes, owed.row >= 0);
  // Asks for up to kRows of the rows that are left, and calls use(j, slot) for each.
  const auto for_rows = [&](auto& v, const auto& use) {
    constexpr int kRows = sizeof(v) / sizeof(v[0]);
    uint32_t asked = left;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (asked == 0) break;
      AskFor(a, __shfl_sync(kAllLanes, owed.row, __ffs(static_cast<int>(asked)) - 1), at, v[j]);
      asked &= asked - 1;
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      if (left == 0) break;
      use(j, __ffs(static_cast<int>(left)) - 1);
      left &= left - 1;
    }
  };
  if (!a.weighted && !a.rank_major) {
    while (left != 0) {
      uint4 v[Results::kAnsweredRows][kAnswered];
      for_rows(v, [&](int j, int slot) {
        Results::Put(a.hidden, buffer.Result(source, token, slot), v[j], at, shared);
      });
    }
    return;
  }
  uint4 answer[kAnswered];
  if (a.rank_major) {
    AskFor(a, source * buffer.layout.max_tokens + message.index, at, answer);
  } else {
    const bool has_rows = left != 0;
    ColumnSum sums[kAnswered];
    while (left != 0) {
      uint4 v[kAtOnce][kAnswered];
      for_rows(v, [&](int j, int slot) {
        const float weight = __shfl_sync(kAllLanes, owed.weight, slot);
#pragma unroll
        for (int i = 0; i < kAnswered; ++i) sums[i].Add(v[j][i], weight);
      });
    }
#pragma unroll
    for (int i = 0; i < kAnswered; ++i)
      answer[i] = has_rows && at + i * kLanes < a.vectors() ? sums[i].Rounded() : uint4{};
  }
  Results::Put(a.hidden, buffer.Result(source, token, place), answer, at, shared);
}

// `first`, `count` of a lane: messages of the source with its number.
template <typename Results>
__device__ void AnswerAll(const CombineArguments& a, int first, int count,
                          typename Results::Shared* shared) {
  const int ranks = a.buffer.ranks();
  const int pieces = (a.vectors() + kAnswered * kLanes - 1) / (kAnswered * kLanes);
  const int most = __reduce_max_sync(kAllLanes, count);
  const int stride = kWarps * static_cast<int>(gridDim.x);
  // In turns of sources, from the own rank on, so that not all ranks write to one.
  const auto message_of = [&](int unit) {
    const int turn = unit / pieces;
    Message message = {(a.buffer.rank() + turn) % ranks, turn / ranks, -1};
    const int begin = __shfl_sync(kAllLanes, first, message.source);
    if (message.index < __shfl_sync(kAllLanes, count, message.source))
      message.origin = a.messages[begin + message.index];
    return message;
  };
  int unit = threadIdx.x / kLanes * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  // Each look at memory needs what the one before it found, so they are made for different units at
  // a time: the rows of this one, the selections of the next one, the token of the one behind it.
  Message message = message_of(unit);
  Message next = message_of(unit + stride);
  Owed owed = Owed::Of(a, message);
  for (; unit < most * ranks * pieces; unit += stride) {
    const Message behind = message_of(unit + 2 * stride);
    const Owed owed_next = Owed::Of(a, next);
    if (message.origin >= 0) Answer<Results>(a, message, owed, unit % pieces, shared);
    message = next;
    owed = owed_next;
    next = behind;
  }
}

// Whether to go on with the other phase; the same for all threads of the block.
template <typename Results>
__device__ bool SendAnswers(const CombineArguments& a, const SlotState& state) {
  __shared__ typename Results::Shared shared;
  const GroupLook look(a.buffer);
  const SharedSignal signal(a.buffer, SignalKind::kResults);
  // Messages of the source with the lane's number: asked for before it is known whether to go on.
  const int lane = threadIdx.x % kLanes;
  const bool has = lane < a.buffer.ranks();
  const int first = has ? a.first[lane] : 0;
  const int count = has ? a.first[lane + 1] - first : 0;
  shared.FillTable();
  TellFree(a.buffer, state.epoch);
  bool ok = MayBegin(a, state);
  if (ok) {
    AnswerAll<Results>(a, first, count, &shared);
    ok = look.Check(a.buffer, a.patience.failure);
  }
  ok = __syncthreads_and(ok) != 0;
  const uint64_t value = SignalOf(state.epoch, Results::kLogFmt ? kLogRows : kBf16Rows);
  if (ok && threadIdx.x < kLanes) signal.TellPart(a.buffer, value);
  if (IsArriving()) {
    Arrive(a.arrived, !ok, [&](unsigned failed) {
      if (failed > 0) {
        return EndFailedSend(a.buffer, a.patience, failed, Operation::kLowLatencyCombine,
                             Missing::kRows, a.snapshot);
      }
      signal.Keep(a.buffer, value);
    });
  }
  return ok;
}

}  // namespace moe_ep::cuda
