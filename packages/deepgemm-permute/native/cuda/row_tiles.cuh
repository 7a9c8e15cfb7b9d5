// What is done for each row of the layout, tile by tile: expert ids and zero padding. A warp takes
// a tile, a lane a row.
#pragma once

#include <cstdint>

#include "cuda/warp.cuh"
#include "moe_ep/cuda/access.cuh"
#include "requests.h"

namespace moe_ep::cuda {

struct TileArguments {
  int64_t capacity;
  int64_t topk;
  int32_t* expert_ids;  // may be null
  bool inside_is_expert;
  int32_t id_inside;
  bool writes_behind;
  int32_t id_behind;
  bool zero_rows;
  uint8_t* rows;
  int64_t row_bytes;
  bool zero_scales;
  bool loose_scales;  // else the scales of a row lie together, or there are none
  ScaleMove scales;

  __host__ __device__ int64_t num_tiles() const { return (capacity + kWarp - 1) / kWarp; }
};

// A warp zeroes memory of any alignment.
__device__ inline void ZeroBytes(uint8_t* to, int64_t bytes) {
  const int lane = Lane();
  const auto head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) & 15u);
  const int64_t before = head < bytes ? head : bytes;
  if (lane < before) to[lane] = 0;
  const int64_t vectors = (bytes - before) / 16;
#pragma unroll 1
  for (int64_t i = lane; i < vectors; i += kWarp)
    StoreOnce(to + before + i * 16, make_uint4(0, 0, 0, 0));
  const int64_t done = before + vectors * 16;
  if (done + lane < bytes) to[done + lane] = 0;
}

// Zeroes the scales of the lanes' rows, one element after the other: where columns lie apart,
// neighbouring lanes write neighbouring places.
__device__ inline void ZeroLooseScales(const ScaleMove& move, int64_t row, bool is_padding) {
  if (!is_padding) return;
  uint8_t* const to = move.to + move.OffsetOf(row);
#pragma unroll 1
  for (int64_t column = 0; column < move.to_columns(); ++column) {
    uint8_t* const place = to + column * move.to_column_stride;
    if (move.to_element_bytes() == 4) {
      *reinterpret_cast<uint32_t*>(place) = 0;
    } else {
      *place = 0;
    }
  }
}

template <typename Rows>
__device__ inline void FinishTile(const Rows& rows, const TileArguments& arguments, int64_t tile) {
  const auto& segments = rows.segments;
  const int64_t first = tile * kWarp;
  const int64_t row = first + Lane();
  bool is_padding = false;
  if (row < arguments.capacity) {
    bool writes = true;
    int32_t id = 0;
    if (row < segments.needed()) {
      const int64_t expert = segments.ExpertOf(row);
      is_padding = row >= int64_t{segments.Start(expert)} + segments.Count(expert);
      id = is_padding && !arguments.inside_is_expert ? arguments.id_inside
                                                     : static_cast<int32_t>(expert);
    } else {
      is_padding = true;
      writes = arguments.writes_behind;
      id = arguments.id_behind;
    }
    if (arguments.expert_ids != nullptr && writes) arguments.expert_ids[row] = id;
  }
  const uint32_t padding = __ballot_sync(kAllLanes, is_padding);
  if (arguments.zero_scales && arguments.loose_scales)
    ZeroLooseScales(arguments.scales, row, is_padding);
  // Whole rows that lie together are zeroed as one range.
  const bool zero_scales =
      arguments.zero_scales && !arguments.loose_scales && arguments.scales.from != nullptr;
  if (!arguments.zero_rows && !zero_scales) return;
#pragma unroll 1
  for (uint32_t left = padding; left != 0;) {
    const int begin = __ffs(static_cast<int>(left)) - 1;
    const uint32_t from_begin = ~(left >> begin);
    const int run = from_begin == 0 ? kWarp : __ffs(static_cast<int>(from_begin)) - 1;
    const int64_t at = first + begin;
    if (arguments.zero_rows)
      ZeroBytes(arguments.rows + at * arguments.row_bytes, run * arguments.row_bytes);
    if (zero_scales)
      ZeroBytes(arguments.scales.to + at * arguments.scales.to_row_stride,
                run * arguments.scales.to_row_stride);
    left = begin + run >= kWarp ? 0 : left & ~(((1u << run) - 1u) << begin);
  }
}

// Rows of the slots, for the caller. Warp `helper` of `num_helpers` takes its share.
template <typename Rows>
__device__ inline void WriteRowsOfSlots(const Rows& rows, int32_t* row_of_slot, int64_t num_slots,
                                        int64_t helper, int64_t num_helpers) {
  constexpr int kTogether = 4;
  const int64_t step = num_helpers * kWarp;
#pragma unroll 1
  for (int64_t slot = helper * kWarp + Lane(); slot < num_slots; slot += kTogether * step) {
    int32_t row[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (slot + i * step < num_slots) row[i] = rows[slot + i * step];
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (slot + i * step < num_slots) row_of_slot[slot + i * step] = row[i];
  }
}

struct TileWork {
  TileArguments tiles;
  int32_t* row_of_slot;
  int64_t num_slots;
};

// What is left beside the moving of rows.
template <typename Rows>
__device__ inline void Help(const Rows& rows, const TileWork& work, int64_t helper,
                            int64_t num_helpers) {
  WriteRowsOfSlots(rows, work.row_of_slot, work.num_slots, helper, num_helpers);
  const int64_t num_tiles = work.tiles.num_tiles();
#pragma unroll 1
  for (int64_t tile = helper; tile < num_tiles; tile += num_helpers)
    FinishTile(rows, work.tiles, tile);
}

}  // namespace moe_ep::cuda
