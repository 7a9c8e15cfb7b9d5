// Combine: warps answer messages, straight into the results of their sources; once all ranks have
// answered, warps sum up tokens. One kernel, or one for each phase where a receive hook parts them.
#include <algorithm>

#include "cuda/device_buffer.cuh"
#include "cuda/kernels.h"
#include "cuda/result_formats.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x6c6c636f6d623032;  // this file's

struct CombineArguments {
  DeviceBuffer buffer;
  ExpertPlacement placement;
  Patience patience;
  moe_ep_failure_record* snapshot;
  unsigned int* arrived;  // [2]: a counter for each phase
  bool weighted;
  bool rank_major;
  int hidden;
  int topk;
  const uint16_t* x;
  const int32_t* rows;
  const int32_t* messages;
  const int32_t* first;
  TopkIds ids;
  const float* weights;  // null when weighted
  int64_t tokens;
  uint16_t* out;
  int64_t* wait_stats;
  moe_ep_describe_failure describe_id;
  moe_ep_describe_failure describe_encodings;
  moe_ep_describe_failure describe_refusal;
  moe_ep_describe_failure describe_not_received;

  __device__ int stride() const { return static_cast<int>(PaddedTopk(topk)); }
  __device__ int vectors() const { return hidden / 8; }
};

// Whether the call may go on: the stream is well, and the slot's newest dispatch was received,
// which ranks find out alike, so that nobody waits for one where it was not. All threads of the
// block call it, and hear the same.
__device__ bool MayBegin(const CombineArguments& a, const SlotState& state) {
  const bool well = !Failed(a.patience.failure);
  const bool received = state.received == state.epoch;
  if (well && !received && blockIdx.x == 0 && threadIdx.x == 0)
    Fail(a.patience.failure, a.describe_not_received, a.buffer.slot);
  return __syncthreads_and(well && received) != 0;
}

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
  const int id = owed.id;
  const int row = owed.row;
  const float weight = owed.weight;
  // How many lower ranks answer for this token, too; or this rank.
  const int64_t owner = id >= 0 ? a.placement.RankOf(id) : rank;
  const uint32_t lower = __reduce_or_sync(kAllLanes, owner < rank ? 1u << owner : 0u);
  const int place = buffer.layout.results_by_rank != 0 ? rank : __popc(lower);
  if (a.rank_major) {
    uint4 v[kAnswered];
    AskFor(a, source * buffer.layout.max_tokens + message.index, at, v);
    return Results::Put(a.hidden, buffer.Result(source, token, place), v, at, shared);
  }
  uint32_t left = __ballot_sync(kAllLanes, row >= 0);
  ColumnSum sums[kAnswered];
  bool first = true;
  while (left != 0) {
    uint4 v[kAtOnce][kAnswered];
    float weights[kAtOnce];
    uint32_t asked = left;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (asked == 0) break;
      const int slot = __ffs(static_cast<int>(asked)) - 1;
      asked &= asked - 1;
      const int64_t from = __shfl_sync(kAllLanes, row, slot);
      weights[j] = __shfl_sync(kAllLanes, weight, slot);
      AskFor(a, from, at, v[j]);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (left == 0) break;
      const int slot = __ffs(static_cast<int>(left)) - 1;
      left &= left - 1;
      if (!a.weighted) {
        Results::Put(a.hidden, buffer.Result(source, token, slot), v[j], at, shared);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kAnswered; ++i) sums[i].Add<true>(v[j][i], weights[j], first);
      first = false;
    }
  }
  if (!a.weighted) return;
  uint4 v[kAnswered];
#pragma unroll
  for (int i = 0; i < kAnswered; ++i)
    v[i] = at + i * kLanes < a.vectors() ? sums[i].Rounded() : uint4{};
  Results::Put(a.hidden, buffer.Result(source, token, place), v, at, shared);
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

// The first selection that this thread finds whose id is no expert's, or -1: placement knows no
// ids but experts' and -1.
__device__ int64_t FindInvalid(const CombineArguments& a) {
  for (int64_t i = threadIdx.x; i < a.tokens * a.topk; i += kThreads)
    if (IsInvalidId(a.ids[i], a.placement.experts)) return i;
  return -1;
}

// Reports the first of what threads found. All threads of a block call it.
__device__ void ReportInvalid(const CombineArguments& a, int64_t found) {
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
  bool first = true;
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
      if (a.weighted) {
        asked.template AddTo<false>(sums, i, 1.0f, first);
      } else {
        asked.template AddTo<true>(sums, i, __shfl_sync(kAllLanes, selection.weight, term), first);
      }
      first = false;
    }
  }
#pragma unroll
  for (int i = 0; i < Results::kSummed; ++i)
    if (at + i * kLanes < a.vectors())
      reinterpret_cast<uint4*>(a.out + token * a.hidden)[at + i * kLanes] = sums[i].Rounded();
}

// Whether all ranks have results and encode them alike; else the first block reports who does not.
// All ranks, and all blocks, find the same. `notes`: of each rank's results. A warp calls it.
__device__ bool CheckNotes(const CombineArguments& a, RankBits present, const int* notes) {
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

template <bool kSend, bool kReceive, typename Results>
__global__ void __launch_bounds__(kThreads, 2)
    CombineKernel(const __grid_constant__ CombineArguments a) {
  FetchArguments(a);
  cudaGridDependencySynchronize();
  const uint64_t begin_ns = Nanoseconds();
  const SlotState state = a.buffer.State();
  bool ok = true;
  if constexpr (kSend) {
    ok = SendAnswers<Results>(a, state);
  } else {
    ok = MayBegin(a, state);
  }
  if constexpr (kReceive) SumAll<Results>(a, state, begin_ns, ok);
}

}  // namespace

void Combine(const Exec& exec, const CombineCall& call) {
  const CombineArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .placement = {call.experts, call.buffer->routes.world_size()},
      .patience = PatienceOf(exec, call.timeout_ms),
      .snapshot = exec.cuda_snapshot(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 2),
      .weighted = call.weighted,
      .rank_major = call.rank_major,
      .hidden = static_cast<int>(call.x.size(2)),
      .topk = static_cast<int>(call.topk_idx.size(1)),
      .x = call.x.data<uint16_t>(),
      .rows = call.received.rows.data<int32_t>(),
      .messages = call.received.messages.data<int32_t>(),
      .first = call.received.first.data<int32_t>(),
      .ids = TopkIds(call.topk_idx),
      .weights = call.topk_weights.data<float>(),
      .tokens = call.out.size(0),
      .out = call.out.data<uint16_t>(),
      .wait_stats = call.wait_stats.data<int64_t>(),
      .describe_id = DescribeCombineId,
      .describe_encodings = DescribeEncodings,
      .describe_refusal = DescribeRefusal,
      .describe_not_received = DescribeNotReceived,
  };
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(call.sms)),
                             .block = kThreads,
                             .overlaps_previous = true,
                             .most_shared = true};
  const auto launch = [&](auto results) {
    using Results = decltype(results);
    if (call.phases.send && call.phases.receive) {
      Launch(CombineKernel<true, true, Results>, shape, exec.cuda_stream(), a);
    } else if (call.phases.send) {
      Launch(CombineKernel<true, false, Results>, shape, exec.cuda_stream(), a);
    } else {
      Launch(CombineKernel<false, true, Results>, shape, exec.cuda_stream(), a);
    }
  };
  if (call.logfmt) {
    launch(LogResults{});
  } else {
    launch(PlainResults{});
  }
}

}  // namespace moe_ep::cuda
