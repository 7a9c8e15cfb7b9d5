// What is done for each row of the layout, tile by tile: expert ids, zero padding, and scales that
// do not simply travel with their rows. A warp takes a tile, a lane a row.
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
  bool move_scales;  // else they travel with their rows, or there are none
  ScaleMove scales;

  __host__ __device__ int64_t num_tiles() const { return (capacity + kWarp - 1) / kWarp; }
};

// Shared memory of one warp.
struct TileMemory {
  int32_t token[kWarp];   // whose scales the row gets; -1 for padding
  int64_t offset[kWarp];  // of the row's scales, in bytes
};

// A warp zeroes memory of any alignment.
__device__ inline void ZeroBytes(uint8_t* to, int64_t bytes) {
  const int lane = Lane();
  const auto head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) & 15u);
  const int64_t before = head < bytes ? head : bytes;
  if (lane < before) to[lane] = 0;
  const int64_t vectors = (bytes - before) / 16;
  for (int64_t i = lane; i < vectors; i += kWarp)
    StoreOnce(to + before + i * 16, make_uint4(0, 0, 0, 0));
  const int64_t done = before + vectors * 16;
  if (done + lane < bytes) to[done + lane] = 0;
}

// One element of the output's scales, in its low bytes.
__device__ __forceinline__ uint32_t LoadScale(const ScaleMove& move, bool words, int64_t token,
                                              int64_t column) {
  const uint8_t* const row = move.from + token * move.from_row_stride;
  if (!move.pack) {
    const uint8_t* const from = row + column * move.from_column_stride;
    return move.element_bytes == 4 ? __ldg(reinterpret_cast<const uint32_t*>(from)) : __ldg(from);
  }
  if (words && column * 4 + 4 <= move.columns)
    return __ldg(reinterpret_cast<const uint32_t*>(row + column * 4));
  uint32_t packed = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t from = column * 4 + j;
    if (from < move.columns)
      packed |= uint32_t{__ldg(row + from * move.from_column_stride)} << (8 * j);
  }
  return packed;
}

// Scales of rows [first, first + 32). Neighbouring lanes take neighbouring places of the output:
// rows where columns lie apart, columns where rows do.
template <typename Rows>
__device__ inline void MoveScalesOfTile(const Rows& rows, const TileArguments& arguments,
                                        int64_t first, TileMemory* memory) {
  constexpr int kTogether = 4;
  const ScaleMove& move = arguments.scales;
  const int lane = Lane();
  const int64_t last = first + kWarp < arguments.capacity ? first + kWarp : arguments.capacity;
  __syncwarp();
  memory->token[lane] = -1;
  const int64_t row = first + lane;
  memory->offset[lane] = row / move.rows_per_batch * move.to_batch_stride +
                         row % move.rows_per_batch * move.to_row_stride;
  __syncwarp();
  rows.ForSlotsOf(first, last, [&](int64_t row_of_slot, int64_t slot) {
    memory->token[row_of_slot - first] = static_cast<int32_t>(slot / arguments.topk);
  });
  __syncwarp();

  const auto columns = static_cast<uint32_t>(move.to_columns());
  const bool by_rows = move.to_row_stride < move.to_column_stride;
  const bool words =
      move.pack && move.from_column_stride == 1 &&
      ((reinterpret_cast<uintptr_t>(move.from) | static_cast<uintptr_t>(move.from_row_stride)) &
       3u) == 0;
  const int64_t elements = int64_t{kWarp} * columns;
  for (int64_t begin = lane; begin < elements; begin += kTogether * kWarp) {
    uint32_t value[kTogether];
    int64_t place[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int64_t element = begin + i * kWarp;
      place[i] = -1;
      if (element >= elements) continue;
      const auto r = static_cast<int>(by_rows ? element % kWarp : element / columns);
      const int64_t column = by_rows ? element / kWarp : element % columns;
      if (first + r >= last) continue;
      const int64_t token = memory->token[r];
      if (token < 0 && !arguments.zero_scales) continue;
      place[i] = memory->offset[r] + column * move.to_column_stride;
      value[i] = token < 0 ? 0 : LoadScale(move, words, token, column);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (place[i] < 0) continue;
      if (move.to_element_bytes() == 4) {
        *reinterpret_cast<uint32_t*>(move.to + place[i]) = value[i];
      } else {
        move.to[place[i]] = static_cast<uint8_t>(value[i]);
      }
    }
  }
}

template <typename Rows>
__device__ inline void FinishTile(const Rows& rows, const TileArguments& arguments, int64_t tile,
                                  TileMemory* memory) {
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
  if (arguments.move_scales) MoveScalesOfTile(rows, arguments, first, memory);
  // Whole rows that lie together are zeroed as one range.
  const bool zero_scales =
      arguments.zero_scales && !arguments.move_scales && arguments.scales.from != nullptr;
  if (!arguments.zero_rows && !zero_scales) return;
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

}  // namespace moe_ep::cuda
