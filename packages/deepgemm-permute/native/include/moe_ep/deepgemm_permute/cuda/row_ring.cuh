// Rows on their way to a sum: a ring of stages in shared memory, through which one warp, the
// loader, hands pieces of rows to the others of its group. Loads run far ahead of sums, so that
// links are busy while sums are made; what is to be done with a piece is told by a note beside it.
#pragma once

#include <cstdint>

#include "moe_ep/cuda/bulk_copy.cuh"
#include "moe_ep/cuda/lanes.cuh"
#include "moe_ep/deepgemm_permute/cuda/row_pieces.cuh"

namespace moe_ep::cuda {

// A block is groups that work by themselves, each a loader and some warps that add up.
inline constexpr int kSumThreads = 4 * kLanes;
inline constexpr int kGroupThreads = kSumThreads + kLanes;
inline constexpr int kMostStages = 16;
// What a group adds up at once: every thread some vectors of 16 bytes. What comes with each piece
// costs more instructions than a vector, so there are several.
inline constexpr int kVectors = 4;
inline constexpr int64_t kMostSumBytes = int64_t{kVectors} * kSumThreads * 16;
inline constexpr int64_t kSumGranule = 128;

struct Note {
  enum Flag : uint32_t {
    kFirst = 1,    // of its sum
    kLast = 2,     // of its sum, which is to be stored
    kEmpty = 4,    // no piece came: the sum is of nothing
    kPublish = 8,  // no piece: what was stored so far is to be told of
    kEnd = 16,     // nothing more comes
  };
  static constexpr int kBytesShift = 8;

  uint32_t what;  // flags, and the bytes of the piece
  float weight;
  int32_t row;      // where the sum is stored; of kPublish whom to tell
  uint32_t offset;  // in the row; of kPublish what to tell

  __device__ bool Has(uint32_t flags) const { return (what & flags) != 0; }
  __device__ uint32_t bytes() const { return what >> kBytesShift; }
};
static_assert(sizeof(Note) == 16);

// One of the rows that a sum is made of.
struct Term {
  const uint8_t* row;
  float weight;
};

// In shared memory, of one group.
struct RingBarriers {
  uint64_t full[kMostStages];
  uint64_t empty[kMostStages];
  Note notes[kMostStages];
  Term terms[kLanes];  // of the loader's token

  // One thread calls it.
  __device__ void Init() {
    for (int stage = 0; stage < kMostStages; ++stage) {
      InitBarrier(&full[stage], 1);
      InitBarrier(&empty[stage], kSumThreads);
    }
  }
};

// One side's view of a ring: both sides walk it alike.
struct Ring {
  RingBarriers& shared;
  uint8_t* stages;
  int64_t stage_bytes;
  int count;
  int stage = 0;
  uint32_t parity = 0;

  __device__ void Advance(int by = 1) {
    stage += by;
    if (stage < count) return;
    stage -= count;
    parity ^= 1;
  }
  __device__ uint8_t* Stage() const { return stages + stage * stage_bytes; }
  __device__ uint64_t* Full() const { return &shared.full[stage]; }
  __device__ uint64_t* Empty() const { return &shared.empty[stage]; }

  // Of the loader: hands on a note to which no piece belongs. A warp calls it.
  __device__ void PushNote(const Note& note, int lane) {
    if (lane == 0) {
      WaitBarrierIdly(Empty(), parity ^ 1);
      shared.notes[stage] = note;
      Arrive(Full());
    }
    __syncwarp();
    Advance();
  }

  // Of the loader: hands on that these pieces of a row are the sum of nothing. A warp calls it.
  __device__ void PushZeros(const RowPieces& pieces, int first_piece, int end_piece, int32_t row,
                            int lane) {
    for (int piece = first_piece; piece < end_piece; ++piece) {
      const int64_t offset = piece * pieces.bytes;
      PushNote(
          {Note::kFirst | Note::kEmpty | Note::kLast | pieces.BytesAt(offset) << Note::kBytesShift,
           0.0f, row, static_cast<uint32_t>(offset)},
          lane);
    }
  }

  // Of the loader: asks for these pieces of one row's sum. Each lane's `has` says whether it has a
  // term of the sum; lower lanes come first. What one lane does takes a while, so lanes ask
  // together, though for a part of the ring only: the others' stages need not be free yet. A warp
  // calls it.
  __device__ void PushSums(const RowPieces& pieces, int first_piece, int end_piece, int32_t row,
                           bool has, const Term& term, int lane) {
    const uint32_t lanes = __ballot_sync(kAllLanes, has);
    if (lanes == 0) return PushZeros(pieces, first_piece, end_piece, row, lane);
    const int terms = __popc(lanes);
    if (has) shared.terms[__popc(lanes & ((1u << lane) - 1))] = term;
    __syncwarp();
    const int all = terms * (end_piece - first_piece);
    const int most = count / 3 > 0 ? count / 3 : 1;
    for (int begin = 0; begin < all; begin += most) {
      const int batch = min(most, all - begin);
      // Stages are given back in turn: when the last one is free, all are.
      Ring behind = *this;
      behind.Advance(batch - 1);
      WaitBarrierIdly(behind.Empty(), behind.parity ^ 1);
      if (lane < batch) {
        const int item = begin + lane;
        const int piece = item / terms;
        const int number = item - piece * terms;
        const int64_t offset = (first_piece + piece) * pieces.bytes;
        const uint32_t bytes = pieces.BytesAt(offset);
        Ring mine = *this;
        mine.Advance(lane);
        const Term& from = shared.terms[number];
        const uint32_t first = number == 0 ? Note::kFirst : 0u;
        const uint32_t last = number + 1 == terms ? Note::kLast : 0u;
        shared.notes[mine.stage] = {first | last | bytes << Note::kBytesShift, from.weight, row,
                                    static_cast<uint32_t>(offset)};
        ArriveExpecting(mine.Full(), bytes);
        BulkLoad(mine.Stage(), from.row + offset, bytes, mine.Full());
      }
      __syncwarp();
      Advance(batch);
    }
  }
};

// Stages of a ring that has `bytes` of shared memory.
inline int StagesIn(int64_t bytes, const RowPieces& pieces) {
  const int64_t stages = bytes / pieces.bytes;
  return static_cast<int>(stages < kMostStages ? stages : kMostStages);
}

// Who a thread is.
struct GroupPlace {
  int group;
  int thread;  // of the group's summing threads; the loader's are behind them
  int lane;

  __device__ GroupPlace()
      : group(static_cast<int>(threadIdx.x) / kGroupThreads),
        thread(static_cast<int>(threadIdx.x) % kGroupThreads),
        lane(static_cast<int>(threadIdx.x) % kLanes) {}
  __device__ bool loads() const { return thread >= kSumThreads; }
};

}  // namespace moe_ep::cuda
