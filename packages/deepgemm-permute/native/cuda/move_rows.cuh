// Copies of tokens' rows to the rows of their slots: a row is read once and written once for each
// slot. Warps are movers, each for itself: what they share is the count of what is left.
#pragma once

#include <cstdint>

#include "cuda/loose_scales.cuh"
#include "cuda/warp.cuh"
#include "moe_ep/cuda/access.cuh"
#include "moe_ep/cuda/bulk_copy.cuh"
#include "requests.h"

namespace moe_ep::cuda {

// A unit is a token with up to 32 of its slots, a lane for each. Tokens have one unit or, with more
// slots, several. A batch is as many units as lanes can look after together.
struct MoveArguments {
  RowMove rows;
  // Scales whose rows travel with the rows: whole, in multiples of 16 bytes. 0 bytes: none do.
  const uint8_t* scales_from;
  int64_t scales_from_stride;
  uint8_t* scales_to;
  int32_t scale_bytes;
  // Scales that the movers themselves put in place one by one.
  bool has_loose_scales;
  LooseScales loose_scales;
  // Rows are moved in pieces that fit into a stage of shared memory.
  int32_t piece_bytes;
  int32_t num_pieces;
  int32_t stage_bytes;
  int64_t num_tokens;
  int64_t topk;
  int32_t width;  // slots of a unit
  int32_t units_per_token;
  int64_t num_units;
  // Set by ShareOut.
  int32_t units_per_batch;
  int32_t units_per_small_batch;
  int64_t num_large_batches;  // the small ones come last, so that all movers end together
  int64_t num_batches;
  unsigned long long* claims;  // batches taken beyond the first two of each mover; null: no need

  __device__ __forceinline__ int UnitsOf(int64_t batch) const {
    return batch < num_large_batches ? units_per_batch : units_per_small_batch;
  }
  __device__ __forceinline__ int64_t FirstUnit(int64_t batch) const {
    const int64_t large = batch < num_large_batches ? batch : num_large_batches;
    return large * units_per_batch + (batch - large) * units_per_small_batch;
  }
  // Nearly always a token is one unit, and a division of 64 bits takes long.
  __device__ __forceinline__ int64_t TokenOf(int64_t unit) const {
    return units_per_token == 1 ? unit : unit / units_per_token;
  }
};

// A lane's slot in a batch; -1 for none.
__device__ __forceinline__ int64_t SlotOfLane(const MoveArguments& move, int64_t batch, int lane) {
  const int in_batch = lane / move.width;
  const int64_t unit = move.FirstUnit(batch) + in_batch;
  if (in_batch >= move.UnitsOf(batch) || unit >= move.num_units || batch >= move.num_batches)
    return -1;
  const int64_t token = move.TokenOf(unit);
  const int64_t k = (unit - token * move.units_per_token) * kWarp + lane - in_batch * move.width;
  return k < move.topk ? token * move.topk + k : -1;
}

// Calls use(token, first lane of the unit, piece) for the pieces of all units that a lane of
// `needed` belongs to, until it returns false.
template <typename Use>
__device__ __forceinline__ void ForPieces(const MoveArguments& move, int64_t batch, uint32_t needed,
                                          const Use& use) {
  const uint32_t lanes = move.width == kWarp ? kAllLanes : (1u << move.width) - 1u;
  const int units = move.UnitsOf(batch);
  const int64_t first_unit = move.FirstUnit(batch);
#pragma unroll 1
  for (int i = 0; i < units; ++i) {
    const int first_lane = i * move.width;
    if ((needed >> first_lane & lanes) == 0) continue;
    const int64_t token = move.TokenOf(first_unit + i);
#pragma unroll 1
    for (int piece = 0; piece < move.num_pieces; ++piece)
      if (!use(token, first_lane, piece)) return;
  }
}

inline constexpr int kMostStageBytes = 8192;

// Rows go through shared memory by bulk copies. All stages are loaded before the places of rows are
// known; from then on some loads are under way while stored rows are still being read out of shared
// memory. With more of either, memory serves nothing faster, but for loads of short rows.
template <int kWarps, int kNumStages>
struct BulkMover {
  static constexpr int kMovers = kWarps;  // of a block
  static constexpr int kStages = kNumStages;
  static constexpr int kStoring = 2;  // stages that are being read out
  static constexpr int kAhead = kStages - kStoring;
  static constexpr int kAtOnce = kWarps / 4;  // of what is preloaded while others need the way

  struct Control {
    uint64_t full[kStages];
    int32_t row[kStages][kWarp];  // of each lane's slot; -1 for none
    int32_t piece[kStages][kWarp];
  };

  // Of a whole block.
  static constexpr __host__ __device__ int64_t SharedBytes(int64_t stage_bytes) {
    return kMovers * (kStages * stage_bytes + static_cast<int64_t>(sizeof(Control)));
  }

  const MoveArguments& move;
  uint8_t* stages;
  Control* control;
  uint32_t loaded = 0;
  uint32_t pushed = 0;
  uint32_t popped = 0;

  __device__ BulkMover(const MoveArguments& arguments, uint8_t* shared, int mover)
      : move(arguments),
        stages(shared + mover * kStages * int64_t{arguments.stage_bytes}),
        control(reinterpret_cast<Control*>(shared +
                                           kMovers * kStages * int64_t{arguments.stage_bytes}) +
                mover) {}

  __device__ void Start() {
    if (Lane() == 0) {
      for (uint64_t& full : control->full) InitBarrier(&full, 1);
      FenceBarriers();
    }
    __syncwarp();
  }

  // Starts to load pieces of a batch whose rows' places are not known yet, while stages are free.
  // Few `at_once` keep memory busy, too, and leave the way free for who works out the places.
  __device__ void Preload(int64_t batch, uint32_t needed, int at_once) {
    if (loaded == kStages) return;
    ForPieces(move, batch, needed, [&](int64_t token, int, int piece) {
      if (loaded >= at_once) WaitBarrier(&control->full[loaded - at_once], 0);
      Load(token, piece);
      return loaded < kStages;
    });
  }

  // Waits for what was preloaded and will not be used.
  __device__ void Abandon() {
#pragma unroll 1
    for (; popped < loaded; ++popped) WaitBarrier(&control->full[popped % kStages], 0);
  }

  // Moves a piece of a token's row to this lane's row, if it has one.
  __device__ void Push(int64_t token, int piece, int32_t row) {
    const bool preloaded = pushed < loaded;
    if (!preloaded) {
#pragma unroll 1
      while (popped + kAhead <= loaded) Pop();
      if (loaded >= kStages) WaitBulkStoresRead<kStoring>();
      __syncwarp();
      Load(token, piece);
    }
    control->row[pushed % kStages][Lane()] = row;
    control->piece[pushed % kStages][Lane()] = piece;
    ++pushed;
    // It has been there for long: memory waits for something to do.
    if (preloaded) Pop();
  }

  __device__ void Finish() {
#pragma unroll 1
    while (popped < pushed) Pop();
    WaitBulkStores<0>();
  }

 private:
  __device__ int32_t BytesOf(int piece) const {
    const int64_t left = move.rows.row_bytes - int64_t{piece} * move.piece_bytes;
    return left < move.piece_bytes ? static_cast<int32_t>(left) : move.piece_bytes;
  }
  __device__ int32_t ScaleBytesOf(int piece) const { return piece == 0 ? move.scale_bytes : 0; }
  __device__ uint8_t* Stage(uint32_t stage) const {
    return stages + stage * int64_t{move.stage_bytes};
  }

  __device__ void Load(int64_t token, int piece) {
    if (Lane() == 0) {
      uint64_t* const full = &control->full[loaded % kStages];
      uint8_t* const stage = Stage(loaded % kStages);
      const int32_t bytes = BytesOf(piece);
      const int32_t scale_bytes = ScaleBytesOf(piece);
      ArriveExpecting(full, static_cast<uint32_t>(bytes + scale_bytes));
      BulkLoad(stage,
               move.rows.from + token * move.rows.from_stride + int64_t{piece} * move.piece_bytes,
               static_cast<uint32_t>(bytes), full);
      if (scale_bytes > 0)
        BulkLoad(stage + move.piece_bytes, move.scales_from + token * move.scales_from_stride,
                 static_cast<uint32_t>(scale_bytes), full);
    }
    ++loaded;
  }

  // Stores the oldest piece.
  __device__ void Pop() {
    const uint32_t index = popped % kStages;
    const int64_t row = control->row[index][Lane()];
    const int piece = control->piece[index][Lane()];
    WaitBarrier(&control->full[index], popped / kStages & 1u);
    if (row >= 0) {
      const uint8_t* const stage = Stage(index);
      BulkStore(move.rows.to + row * move.rows.row_bytes + int64_t{piece} * move.piece_bytes, stage,
                static_cast<uint32_t>(BytesOf(piece)));
      if (ScaleBytesOf(piece) > 0)
        BulkStore(move.scales_to + row * move.scale_bytes, stage + move.piece_bytes,
                  static_cast<uint32_t>(move.scale_bytes));
    }
    CommitBulkStores();
    ++popped;
  }
};

// Rows go through registers: any alignment.
struct PlainMover {
  static constexpr int kMovers = 8;
  static constexpr int kAtOnce = 0;  // it preloads nothing

  static constexpr __host__ __device__ int64_t SharedBytes(int64_t) { return 0; }

  const MoveArguments& move;

  __device__ PlainMover(const MoveArguments& arguments, uint8_t*, int) : move(arguments) {}

  __device__ void Start() {}
  __device__ void Preload(int64_t, uint32_t, int) {}
  __device__ void Abandon() {}
  __device__ void Finish() {}

  __device__ void Push(int64_t token, int, int32_t row) {
    const RowMove& rows = move.rows;
    const uint8_t* const from = rows.from + token * rows.from_stride;
    const uintptr_t places = reinterpret_cast<uintptr_t>(rows.from) |
                             reinterpret_cast<uintptr_t>(rows.to) |
                             static_cast<uintptr_t>(rows.from_stride | rows.row_bytes);
    if (places % 16 == 0) {
      Copy<uint4>(rows.to, from, rows.row_bytes, row);
    } else if (places % 4 == 0) {
      Copy<uint32_t>(rows.to, from, rows.row_bytes, row);
    } else if (places % 2 == 0) {
      Copy<uint16_t>(rows.to, from, rows.row_bytes, row);
    } else {
      Copy<uint8_t>(rows.to, from, rows.row_bytes, row);
    }
    if (move.scale_bytes > 0)
      Copy<uint4>(move.scales_to, move.scales_from + token * move.scales_from_stride,
                  move.scale_bytes, row);
  }

 private:
  static __device__ __forceinline__ uint4 LoadOne(const uint4* from) { return LoadOnce(from); }
  template <typename Vector>
  static __device__ __forceinline__ Vector LoadOne(const Vector* from) {
    return __ldg(from);
  }
  static __device__ __forceinline__ void StoreOne(uint4* to, uint4 value) { StoreOnce(to, value); }
  template <typename Vector>
  static __device__ __forceinline__ void StoreOne(Vector* to, Vector value) {
    *to = value;
  }

  // The same bytes to the rows of all lanes that have one.
  template <typename Vector>
  static __device__ __forceinline__ void Copy(uint8_t* to, const uint8_t* from, int64_t bytes,
                                              int32_t row) {
    constexpr int kTogether = 8;
    const uint32_t places = __ballot_sync(kAllLanes, row >= 0);
    const auto* const source = reinterpret_cast<const Vector*>(from);
    const int64_t vectors = bytes / static_cast<int64_t>(sizeof(Vector));
    for (int64_t first = 0; first < vectors; first += kTogether * kWarp) {
      const int64_t begin = first + Lane();
      Vector vector[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (begin + i * kWarp < vectors) vector[i] = LoadOne(source + begin + i * kWarp);
      for (uint32_t left = places; left != 0; left &= left - 1) {
        const int64_t place = __shfl_sync(kAllLanes, row, __ffs(static_cast<int>(left)) - 1);
        auto* const target = reinterpret_cast<Vector*>(to + place * bytes);
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
          if (begin + i * kWarp < vectors) StoreOne(target + begin + i * kWarp, vector[i]);
      }
    }
  }
};

// What a mover has asked for ahead of its first two batches.
struct FirstBatches {
  int64_t slot[2];     // of this lane
  uint32_t needed[2];  // lanes whose rows may be needed: these were preloaded
  uint32_t word[2];

  __device__ __forceinline__ FirstBatches(const MoveArguments& move, int64_t mover,
                                          int64_t num_movers)
      : slot{SlotOfLane(move, mover, Lane()), SlotOfLane(move, mover + num_movers, Lane())},
        needed{},
        word{} {}

  template <typename Needs>
  __device__ __forceinline__ void Find(const Needs& needs) {
    const bool both[2] = {slot[0] >= 0 && needs(slot[0]), slot[1] >= 0 && needs(slot[1])};
    needed[0] = __ballot_sync(kAllLanes, both[0]);
    needed[1] = __ballot_sync(kAllLanes, both[1]);
  }
  template <typename Rows>
  __device__ __forceinline__ void LoadWords(const Rows& rows) {
    word[0] = slot[0] < 0 ? 0 : rows.Word(slot[0]);
    word[1] = slot[1] < 0 ? 0 : rows.Word(slot[1]);
  }
};

// Moves mover `mover`'s share.
template <typename Mover, typename Rows>
__device__ __forceinline__ void MoveBatches(Mover& engine, const Rows& rows,
                                            const FirstBatches& first, int64_t mover,
                                            int64_t num_movers) {
  const MoveArguments& move = engine.move;
  const int lane = Lane();
  const auto row_of = [&](uint32_t word, int64_t slot) {
    return slot < 0 ? -1 : rows.LocalRowOfWord(word, slot);
  };
  int64_t batch = mover;
  int64_t next = mover + num_movers;
  int64_t next_slot = first.slot[1];
  uint32_t next_word = first.word[1];
  int32_t row = row_of(first.word[0], first.slot[0]);
#pragma unroll 1
  for (int turn = 0; batch < move.num_batches; ++turn) {
    // What the next turns need is asked for in this one.
    unsigned long long claim = 0;
    if (move.claims != nullptr && lane == 0) claim = atomicAdd(move.claims, 1ull);
    if (move.has_loose_scales && next_slot >= 0 && lane % move.width == 0)
      move.loose_scales.Prefetch(next_slot / move.topk);
    int32_t next_row = -1;
    bool knows_next = false;

    uint32_t needed = __ballot_sync(kAllLanes, row >= 0);
    if (turn == 0) needed = first.needed[0];
    if (turn == 1) needed = first.needed[1];
    ForPieces(move, batch, needed, [&](int64_t token, int first_lane, int piece) {
      const bool mine = lane >= first_lane && lane < first_lane + move.width;
      engine.Push(token, piece, mine ? row : -1);
      if (move.has_loose_scales && piece == 0) move.loose_scales.Move(token, mine ? row : -1);
      if (!knows_next) next_row = row_of(next_word, next_slot);
      knows_next = true;
      return true;
    });
    if (!knows_next) next_row = row_of(next_word, next_slot);

    batch = next;
    row = next_row;
    next = move.claims == nullptr
               ? next + num_movers
               : 2 * num_movers + static_cast<int64_t>(__shfl_sync(kAllLanes, claim, 0));
    next_slot = SlotOfLane(move, next, lane);
    next_word = next_slot < 0 ? 0 : rows.Word(next_slot);
  }
  engine.Finish();
}

}  // namespace moe_ep::cuda
