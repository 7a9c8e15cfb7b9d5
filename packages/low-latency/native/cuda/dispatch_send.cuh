// The send phase of dispatch: warps cast pieces of rows once and write them to all ranks that have
// an expert of the token, while one block tells every rank the ids of all tokens.
#pragma once

#include "cuda/dispatch.cuh"
#include "moe_ep/quant/group_quant.cuh"

namespace moe_ep::cuda {

// A piece of a row is a warp's work: `kItems` vectors of 8 elements a lane.
inline constexpr int kItems = 4;
inline constexpr int kPiece = kItems * kLanes * 8;
inline constexpr int kGroupsOfPiece = kPiece / kGroupSize;

struct alignas(16) CastPiece {
  uint8_t codes[kPiece];
  float scales[kGroupsOfPiece];
};

struct SendShared {
  CastPiece pieces[kWarps];
  unsigned long long invalid;  // place of the first id that is no expert's, or all ones
};

// A piece of a row in the registers of a warp, and its token's ids, a slot in a lane.
struct LoadedPiece {
  int64_t token;
  int piece;
  int64_t id;
  LaneVector<BF16Element, 8> items[kItems];

  __device__ __forceinline__ static LoadedPiece Of(const DispatchArguments& a, int64_t token,
                                                   int piece) {
    const int lane = threadIdx.x % kLanes;
    const auto hidden = static_cast<int>(a.shared.hidden);
    const uint16_t* const x = a.x + token * hidden;
    LoadedPiece p;
    p.token = token;
    p.piece = piece;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int at = piece * kPiece + (i * kLanes + lane) * 8;
      p.items[i] = LaneVector<BF16Element, 8>::LoadIf(at < hidden, x + at);
    }
    p.id = lane < a.topk() ? a.ids[token * a.topk() + lane] : -1;
    return p;
  }
};

// Where a token's row goes. A warp makes it, a lane for each slot.
class Targets {
 public:
  __device__ Targets(const DispatchArguments& a, int64_t token, int64_t id, RankBits present)
      : a_(a), token_(token) {
    const int lane = threadIdx.x % kLanes;
    // Such a dispatch is refused by all ranks: nothing of this token need travel.
    if (__any_sync(kAllLanes, IsInvalidId(id, a.shared.experts))) return;
    const int rank = id >= 0 ? static_cast<int>(a.placement.RankOf(id)) : 0;
    const bool goes = id >= 0 && TakesPart(present, rank);
    if (a.per_selection()) {
      // An expert gets a row once, however often the token names it.
      const uint32_t same = __match_any_sync(kAllLanes, id);
      bits_ = __ballot_sync(kAllLanes, goes && __ffs(static_cast<int>(same)) - 1 == lane);
      rank_of_slot_ = rank;
    } else {
      bits_ = __reduce_or_sync(kAllLanes, goes ? 1u << rank : 0u);
    }
  }

  // Calls put(message) for each, the same for all lanes.
  template <typename Put>
  __device__ void ForEach(const Put& put) const {
    const DeviceBuffer& buffer = a_.buffer;
    // From another one on in every rank and token, so that not all write to one rank at once.
    const unsigned turn = static_cast<unsigned>(buffer.rank() + token_) % kLanes;
    uint32_t left = __funnelshift_r(bits_, bits_, turn);
#pragma unroll 1
    for (; left != 0; left &= left - 1) {
      const int bit = static_cast<int>((__ffs(static_cast<int>(left)) - 1 + turn) % kLanes);
      const int rank = a_.per_selection() ? __shfl_sync(kAllLanes, rank_of_slot_, bit) : bit;
      put(buffer.Message(rank, buffer.rank(), token_, a_.per_selection() ? bit : 0));
    }
  }

 private:
  const DispatchArguments& a_;
  int64_t token_;
  uint32_t bits_ = 0;  // ranks, or slots
  int rank_of_slot_ = 0;
};

// A warp calls it.
__device__ inline void SendPiece(const DispatchArguments& a, RankBits present,
                                 const LoadedPiece& loaded, CastPiece* cast) {
  using Warp = WarpItems<kGroupSize / 8, kItems>;
  const int lane = threadIdx.x % kLanes;
  const auto hidden = static_cast<int>(a.shared.hidden);
  const int first = loaded.piece * kPiece;
  const Targets targets(a, loaded.token, loaded.id, present);
  const auto& items = loaded.items;
  if (a.bf16()) {
    targets.ForEach([&](uint8_t* row) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int at = first + (i * kLanes + lane) * 8;
        const auto& words = items[i].words;
        if (at < hidden)
          *reinterpret_cast<uint4*>(row + at * 2) =
              make_uint4(words[0], words[1], words[2], words[3]);
      }
    });
    return;
  }
  const ScaleRule rule = {GroupNumerics::kDeepEp,
                          a.shared.format == static_cast<int64_t>(RowFormat::kFp8PowerOfTwo)};
  const float scale =
      QuantizeGroups<Encoding::kMultiply, kGroupSize>(items, rule, [&](int i, const auto& codes) {
        *reinterpret_cast<uint2*>(cast->codes + (i * kLanes + lane) * 8) =
            make_uint2(codes[0], codes[1]);
      });
  if (Warp::Writes(lane))
    cast->scales[Warp::FirstOwned(lane) * (kLanes * 8 / kGroupSize) + Warp::GroupOf(lane)] = scale;
  __syncwarp();
  const auto* const codes = reinterpret_cast<const uint4*>(cast->codes);
  const uint4 low = codes[lane];
  const uint4 high = codes[kLanes + lane];
  const int group = loaded.piece * kGroupsOfPiece + lane;
  const bool has_scale = lane < kGroupsOfPiece && group < NumGroups(hidden);
  const float own_scale = has_scale ? cast->scales[lane] : 0.0f;
  targets.ForEach([&](uint8_t* row) {
    const int at = first + lane * 16;
    if (at < hidden) *reinterpret_cast<uint4*>(row + at) = low;
    if (at + kLanes * 16 < hidden) *reinterpret_cast<uint4*>(row + at + kLanes * 16) = high;
    if (has_scale) reinterpret_cast<float*>(row + ScalesOffset(hidden))[group] = own_scale;
  });
  __syncwarp();  // before the next piece takes the shared memory
}

// Ids, weights and the head, to all ranks. All threads of a block call it.
__device__ inline void PutTables(const DispatchArguments& a, RankBits present, SendShared* shared) {
  const DeviceBuffer& buffer = a.buffer;
  if (threadIdx.x == 0) shared->invalid = ~0ull;
  __syncthreads();
  const int quads = a.stride() / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < a.tokens * quads; i += kThreads) {
    const int64_t token = i / quads;
    int32_t ids[4];
    float weights[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int slot = i % quads * 4 + j;
      const int64_t at = token * a.topk() + slot;
      const int64_t id = slot < a.topk() ? a.ids[at] : -1;
      if (IsInvalidId(id, a.shared.experts))
        atomicMin(&shared->invalid, static_cast<unsigned long long>(at));
      ids[j] = static_cast<int32_t>(id);
      if (a.weights != nullptr && slot < a.topk()) weights[j] = a.weights[at];
    }
    int rank = buffer.rank();
#pragma unroll 1
    for (int step = 0; step < buffer.ranks(); ++step, ++rank) {
      if (rank == buffer.ranks()) rank = 0;
      if (!TakesPart(present, rank)) continue;
      reinterpret_cast<int4*>(buffer.Ids(rank, buffer.rank()))[i] =
          make_int4(ids[0], ids[1], ids[2], ids[3]);
      if (a.weights == nullptr) continue;
      reinterpret_cast<float4*>(buffer.Weights(rank, buffer.rank()))[i] =
          make_float4(weights[0], weights[1], weights[2], weights[3]);
    }
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= buffer.ranks()) return;
  // Masked ranks hear of it, too, so that one that knows nothing of its mask need not wait to see.
  DispatchHead head = {a.shared, a.tokens, -1, 0, a.refusal};
  head.arguments.mask = static_cast<int64_t>(~present);
  if (a.global_scale != nullptr) head.arguments.global_scale = __float_as_uint(*a.global_scale);
  if (shared->invalid != ~0ull) {
    head.invalid_token = static_cast<int64_t>(shared->invalid) / a.topk();
    head.invalid_id = a.ids[static_cast<int64_t>(shared->invalid)];
  }
  buffer.Head(static_cast<int>(threadIdx.x), buffer.rank()) = head;
}

// False when the dispatch is not to go on, as far as this block knows; the same for all its
// threads, which have met at the end. `send_piece`(a loaded piece, shared memory) is called by
// warps.
template <typename SendPieceOf>
__device__ __forceinline__ bool Send(const DispatchArguments& a, uint64_t begin_ns, uint64_t epoch,
                                     RankBits* present, SendShared* shared,
                                     const SendPieceOf& send_piece) {
  const DeviceBuffer& buffer = a.buffer;
  // The last block puts tables, the others rows, unless it is alone.
  const bool puts_tables = blockIdx.x == gridDim.x - 1;
  const int senders = gridDim.x == 1 ? 1 : static_cast<int>(gridDim.x) - 1;
  const int warp = threadIdx.x / kLanes;
  const int pieces = static_cast<int>((a.shared.hidden + kPiece - 1) / kPiece);
  const int items = puts_tables && gridDim.x > 1 ? 0 : static_cast<int>(a.tokens) * pieces;
  int item = warp * senders + static_cast<int>(blockIdx.x);
  // The first piece is asked for while the wait is on its way.
  LoadedPiece loaded;
  if (item < items) loaded = LoadedPiece::Of(a, item / pieces, item % pieces);
  const GroupLook look(buffer);
  const SharedSignal signal(buffer, SignalKind::kMessages);
  const SharedSignal results(buffer, SignalKind::kResults);
  const RankBits before = buffer.State().present;
  // Of the dispatch before, where no combine has.
  TellFree(buffer, epoch - 1);
  // Nobody writes messages over those that a rank has not unpacked yet.
  bool ok = WaitForAll(buffer, a.patience, begin_ns,
                       {SignalKind::kFree, epoch - 1, StepOf(epoch, Wait::kToSend),
                        Operation::kLowLatencyDispatch, Missing::kFreeSlot},
                       !Failed(a.patience.failure), present);
  // Nor tables over those that combine of the other ranks still reads: this rank's own has waited
  // for them, unless it refused. Who took no part has told that its slot is free.
  if (ok && IsRefusalOf(results.told(), epoch - 1)) [[unlikely]] {
    const bool combines = TakesPart(before, static_cast<int>(threadIdx.x));
    ok = WaitForAll(
        buffer, a.patience, begin_ns,
        {combines ? SignalKind::kResults : SignalKind::kFree,
         combines ? SignalOf(epoch - 1, 0) : epoch - 1, StepOf(epoch, Wait::kToPutTables),
         Operation::kLowLatencyDispatch, Missing::kFreeSlot},
        ok, present);
  }
  if (ok) {
    if (puts_tables) PutTables(a, *present, shared);
    while (item < items) {
      send_piece(loaded, &shared->pieces[warp]);
      item += senders * kWarps;
      if (item < items) loaded = LoadedPiece::Of(a, item / pieces, item % pieces);
    }
    ok = look.Check(buffer, a.patience.failure);
  }
  // Receivers read messages by bulk copies.
  FenceGlobalForBulk();
  ok = __syncthreads_and(ok) != 0;
  const uint64_t value = SignalOf(epoch, a.tokens);
  if (ok && threadIdx.x < kLanes) signal.TellPart(buffer, value);
  if (IsArriving()) {
    Arrive(a.arrived, !ok, [&](unsigned failed) {
      if (failed > 0) {
        return EndFailedSend(buffer, a.patience, failed, Operation::kLowLatencyDispatch,
                             Missing::kMessages, a.snapshot);
      }
      buffer.State().epoch = epoch;
      buffer.State().present = *present;
      signal.Keep(buffer, value);
    });
  }
  return ok;
}

}  // namespace moe_ep::cuda
