// The second half of a combine: each rank pulls the rows of its tokens from where they lie and adds
// them up, in the order of ranks.
#pragma once

#include <algorithm>

#include "cuda/places.cuh"
#include "moe_ep/deepgemm_permute/cuda/sum_rows.cuh"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {

// Of a block.
inline constexpr int kGroups = 4;
inline constexpr int kRingThreads = kGroups * kGroupThreads;
// Shared memory of a block for stages and whatever else its kernel needs, of the 227 KiB that there
// are.
inline constexpr int64_t kRingBytes = int64_t{216} << 10;

// Who works on what. A block takes a span of tokens at a time, its groups their parts in turn; a
// part is a whole token, or some of its pieces where there are few tokens.
struct PullShape {
  int64_t tokens;
  int32_t span;         // tokens; with parts a multiple of the groups
  int32_t parts_shift;  // log2 of the parts of a token
  int32_t part_pieces;
  int32_t pieces;
};

struct PullCursor {
  const PullShape& shape;
  int32_t blocks;
  int32_t group;
  int64_t first;  // of the span
  int32_t part;   // of the span

  __device__ PullCursor(const PullShape& shape_, int block, int blocks_, int group_)
      : shape(shape_), blocks(blocks_), group(group_), first(int64_t{block} * shape_.span) {
    part = group;
    Settle();
  }
  __device__ bool done() const { return first >= shape.tokens; }
  __device__ int64_t token() const { return first + (part >> shape.parts_shift); }
  __device__ int32_t first_piece() const {
    return (part & ((1 << shape.parts_shift) - 1)) * shape.part_pieces;
  }
  __device__ int32_t end_piece() const {
    return min(first_piece() + shape.part_pieces, shape.pieces);
  }
  __device__ void Next() {
    part += kGroups;
    Settle();
  }

 private:
  __device__ void Settle() {
    while (!done() && (part >= shape.span << shape.parts_shift || token() >= shape.tokens)) {
      part = group;
      first += int64_t{blocks} * shape.span;
    }
  }
};

// Parts and spans for so many tokens. Spans are of at least `least` tokens where there are enough
// of them for all blocks.
inline PullShape ShapeOf(int64_t tokens, const RowPieces& pieces, int64_t blocks, int32_t least) {
  int32_t shift = 0;
  while (tokens << shift < 4 * kGroups * blocks && kGroups >> (shift + 1) > 0 &&
         pieces.count >> (shift + 1) > 0)
    ++shift;
  const auto count = static_cast<int32_t>(pieces.count);
  const int32_t parts = 1 << shift;
  const int32_t span = kGroups >> shift;
  return {tokens, tokens >= 4 * least * blocks ? std::max(span, least) : span, shift,
          (count + parts - 1) / parts, count};
}

// What finds the rows of a token: a lane for each rank, -1 where there is none.
struct PlainRows {
  const int32_t* rows;  // [T, R]
  int ranks;

  struct Raw {
    int32_t row;
  };
  __device__ Raw Load(int64_t token, int lane) const {
    return {lane < ranks ? rows[token * ranks + lane] : -1};
  }
  __device__ int32_t Find(const Raw& raw, int) const { return raw.row; }
};

// Of grouped rows the first selection's place at each rank, where that rank has added them up.
struct GroupedRows {
  const int32_t* rows;  // [T, K]
  TopkIds ids;          // [T, K]
  int32_t topk;
  ExpertPlacement placement;
  int ranks;

  struct Raw {
    int32_t row;
    int32_t rank;
  };
  __device__ Raw Load(int64_t token, int lane) const {
    if (lane >= topk) return {-1, -1};
    const int64_t slot = token * topk + lane;
    const int32_t row = rows[slot];
    return {row, RankOfSelection(placement, row, ids[slot])};
  }
  __device__ int32_t Find(const Raw& raw, int lane) const {
    int32_t found = -1;
    for (int rank = 0; rank < ranks; ++rank) {
      const uint32_t slots = __ballot_sync(kAllLanes, raw.rank == rank);
      const int32_t row = __shfl_sync(kAllLanes, raw.row, __ffs(static_cast<int>(slots)) - 1);
      if (lane == rank && slots != 0) found = row;
    }
    return found;
  }
};

// The loader of a group. `ready(token, lanes)` waits until the ranks of these lanes have the
// token's rows; false ends the work. A warp calls it.
template <typename Rows, typename Ready>
__device__ void PullRows(const DeviceBuffer& buffer, const RowPieces& pieces, const Rows& rows,
                         PullCursor cursor, Ring ring, int lane, const Ready& ready) {
  const uint8_t* const base = lane < buffer.ranks() ? buffer.Rows(lane) : nullptr;
  typename Rows::Raw next = {};
  if (!cursor.done()) next = rows.Load(cursor.token(), lane);
  while (!cursor.done()) {
    const typename Rows::Raw raw = next;
    const int64_t token = cursor.token();
    const int32_t first_piece = cursor.first_piece();
    const int32_t end_piece = cursor.end_piece();
    cursor.Next();
    if (!cursor.done()) next = rows.Load(cursor.token(), lane);
    const int32_t row = rows.Find(raw, lane);
    const uint32_t lanes = __ballot_sync(kAllLanes, row >= 0);
    if (!ready(token, lanes)) break;
    ring.PushSums(pieces, first_piece, end_piece, static_cast<int32_t>(token), row >= 0,
                  {base + row * pieces.row_bytes, 1.0f}, lane);
  }
  ring.PushNote({Note::kEnd, 0.0f, 0, 0}, lane);
}

}  // namespace moe_ep::cuda
