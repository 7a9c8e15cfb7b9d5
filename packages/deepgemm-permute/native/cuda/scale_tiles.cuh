// Loose scales of many tokens: warps beside those that move rows take the slots in tiles. A tile's
// scales come into shared memory the way they lie, and leave it in the order of their rows, so that
// rows of an expert, which lie together, are written together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/loose_scales.cuh"
#include "cuda/warp.cuh"

namespace moe_ep::cuda {

struct ScaleTiles {
  static constexpr int kThreads = 128;
  static constexpr int kMostSlots = 1024;
  static constexpr int kMostTokens = 128;
  static constexpr int kMostValues = 6144;

  LooseScales scales;
  int64_t topk;
  int64_t num_slots;
  int32_t slots;    // of a tile: those of whole tokens, or a part of those of one or two
  int32_t tokens;   // that these may belong to
  int32_t columns;  // of the output that are in shared memory at once
  int64_t num_tiles;

  static ScaleTiles Of(const LooseScales& scales, int64_t num_tokens, int64_t topk) {
    ScaleTiles tiles = {.scales = scales, .topk = topk, .num_slots = num_tokens * topk};
    const int64_t tokens = std::clamp<int64_t>(kMostSlots / topk, 1, kMostTokens);
    tiles.slots = static_cast<int32_t>(std::min<int64_t>(kMostSlots, tokens * topk));
    tiles.tokens = static_cast<int32_t>(std::max<int64_t>(tokens, 2));
    // Columns come in pieces of about the same size.
    const int64_t most = kMostValues / kMostTokens - 1;
    const int64_t columns = scales.move.to_columns();
    const int64_t pieces = (columns + most - 1) / most;
    tiles.columns = static_cast<int32_t>((columns + pieces - 1) / pieces);
    tiles.num_tiles = (tiles.num_slots + tiles.slots - 1) / tiles.slots;
    return tiles;
  }
};

struct ScaleTileMemory {
  // Of each slot with a row: at first the row, then where its scales go; below it the token.
  int64_t places[ScaleTiles::kMostSlots];
  uint32_t values[ScaleTiles::kMostValues];
  uint32_t needed[ScaleTiles::kMostTokens / kWarp];  // a bit for each token
  int32_t count;
};

// The warps that share a tile meet; others of the block do not take part.
__device__ __forceinline__ void MeetForTile() {
  asm volatile("bar.sync 1, %0;" ::"n"(ScaleTiles::kThreads) : "memory");
}

// A word from global to shared memory past the registers, for the thread that waits for it.
__device__ __forceinline__ void CopyWordAsync(uint32_t* to, const uint8_t* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ __forceinline__ void WaitForWords() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Calls use(item, line, step) so that with the kTogether - 1 lines that follow in these steps, all
// lines and items are met. Neighbouring threads have neighbouring items.
template <int kTogether, typename Use>
__device__ __forceinline__ void ForItems(int thread, int lines, int items, const Use& use) {
  int width = kWarp;
  while (width / 2 >= items) width /= 2;
  const int step = ScaleTiles::kThreads / width;
  for (int item = thread % width; item < items; item += width)
    for (int line = thread / width; line < lines; line += kTogether * step) use(item, line, step);
}

// Brings the places of a tile's slots into shared memory, in the order of their rows.
template <typename Rows>
__device__ __forceinline__ void FindPlaces(const Rows& rows, const ScaleTiles& tiles,
                                           ScaleTileMemory* memory, int64_t first, int thread) {
  constexpr int kTogether = ScaleTiles::kMostSlots / ScaleTiles::kThreads;
  const int64_t behind = first + tiles.slots;
  const int64_t end = behind < tiles.num_slots ? behind : tiles.num_slots;
  const int64_t first_token = first / tiles.topk;
  uint32_t word[kTogether];
  int32_t row[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t slot = first + i * ScaleTiles::kThreads + thread;
    word[i] = slot < end ? rows.Word(slot) : 0;
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t slot = first + i * ScaleTiles::kThreads + thread;
    row[i] = slot < end ? rows.LocalRowOfWord(word[i], slot) : -1;
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const uint32_t lanes = __ballot_sync(kAllLanes, row[i] >= 0);
    int32_t base = 0;
    if (Lane() == 0 && lanes != 0) base = atomicAdd(&memory->count, __popc(lanes));
    base = __shfl_sync(kAllLanes, base, 0);
    if (row[i] < 0) continue;
    const int64_t slot = first + i * ScaleTiles::kThreads + thread;
    const auto token = static_cast<uint32_t>(slot / tiles.topk - first_token);
    memory->places[base + __popc(lanes & LanesBelow(Lane()))] = (int64_t{row[i]} << 8) | token;
    atomicOr(&memory->needed[token / kWarp], 1u << token % kWarp);
  }
  MeetForTile();
  // Rows differ, so there is one order.
  const int count = memory->count;
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + thread; i < size; i += ScaleTiles::kThreads) memory->places[i] = INT64_MAX;
  MeetForTile();
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int pair = thread; pair < size / 2; pair += ScaleTiles::kThreads) {
        const int low = 2 * pair - (pair & (distance - 1));
        const int64_t a = memory->places[low];
        const int64_t b = memory->places[low + distance];
        if ((a > b) == ((low & run) == 0)) {
          memory->places[low] = b;
          memory->places[low + distance] = a;
        }
      }
      MeetForTile();
    }
  }
  for (int i = thread; i < count; i += ScaleTiles::kThreads) {
    const int64_t place = memory->places[i];
    memory->places[i] = (tiles.scales.move.OffsetOf(place >> 8) << 8) | (place & 255);
  }
  MeetForTile();
}

// Columns [begin, begin + columns) of a tile's tokens, from where they lie into shared memory.
__device__ __forceinline__ void LoadValues(const ScaleTiles& tiles, ScaleTileMemory* memory,
                                           int64_t first_token, int64_t begin, int columns,
                                           int pitch, int thread) {
  constexpr int kTogether = 8;
  const LooseScales& scales = tiles.scales;
  const int64_t behind = (tiles.num_slots - 1) / tiles.topk + 1;
  const int tokens =
      behind - first_token < tiles.tokens ? static_cast<int>(behind - first_token) : tiles.tokens;
  // What lies together is read by neighbouring threads.
  const bool by_row = scales.move.from_column_stride <= scales.move.from_row_stride;
  if (scales.CopiesWords()) {
    // All of them at once: memory is busy, and each way there takes long.
    ForItems<1>(thread, by_row ? tokens : columns, by_row ? columns : tokens,
                [&](int item, int line, int) {
                  const int token = by_row ? line : item;
                  const int column = by_row ? item : line;
                  if ((memory->needed[token / kWarp] >> token % kWarp & 1u) != 0)
                    CopyWordAsync(memory->values + token * pitch + column,
                                  scales.WordAt(first_token + token, begin + column));
                });
    WaitForWords();
    return;
  }
  ForItems<kTogether>(thread, by_row ? tokens : columns, by_row ? columns : tokens,
                      [&](int item, int line, int step) {
                        uint32_t value[kTogether];
#pragma unroll
                        for (int i = 0; i < kTogether; ++i) {
                          const int at = line + i * step;
                          const int token = by_row ? at : item;
                          const int column = by_row ? item : at;
                          if (at < (by_row ? tokens : columns) &&
                              (memory->needed[token / kWarp] >> token % kWarp & 1u) != 0)
                            value[i] = scales.Load(first_token + token, begin + column);
                        }
#pragma unroll
                        for (int i = 0; i < kTogether; ++i) {
                          const int at = line + i * step;
                          const int token = by_row ? at : item;
                          const int column = by_row ? item : at;
                          if (at < (by_row ? tokens : columns) &&
                              (memory->needed[token / kWarp] >> token % kWarp & 1u) != 0)
                            memory->values[token * pitch + column] = value[i];
                        }
                      });
}

// The same columns, from there to the rows.
__device__ __forceinline__ void StoreValues(const ScaleTiles& tiles, const ScaleTileMemory* memory,
                                            int64_t begin, int columns, int pitch, int thread) {
  constexpr int kTogether = 4;
  const LooseScales& scales = tiles.scales;
  const int count = memory->count;
  const bool by_row = scales.move.to_column_stride <= scales.move.to_row_stride;
  ForItems<kTogether>(thread, by_row ? count : columns, by_row ? columns : count,
                      [&](int item, int line, int step) {
#pragma unroll
                        for (int i = 0; i < kTogether; ++i) {
                          const int at = line + i * step;
                          if (at >= (by_row ? count : columns)) break;
                          const int64_t place = memory->places[by_row ? at : item];
                          const int column = by_row ? item : at;
                          scales.Store(scales.move.to + (place >> 8) +
                                           (begin + column) * scales.move.to_column_stride,
                                       memory->values[(place & 255) * pitch + column]);
                        }
                      });
}

template <typename Rows>
__device__ inline void MoveScaleTile(const Rows& rows, const ScaleTiles& tiles,
                                     ScaleTileMemory* memory, int64_t tile, int thread) {
  const int64_t first = tile * tiles.slots;
  if (thread == 0) memory->count = 0;
  if (thread < ScaleTiles::kMostTokens / kWarp) memory->needed[thread] = 0;
  MeetForTile();
  FindPlaces(rows, tiles, memory, first, thread);
  const int64_t columns = tiles.scales.move.to_columns();
  for (int64_t begin = 0; begin < columns; begin += tiles.columns) {
    const int64_t left = columns - begin;
    const int here = left < tiles.columns ? static_cast<int>(left) : tiles.columns;
    // An odd pitch: neither tokens nor columns of a warp meet in a bank.
    const int pitch = tiles.columns | 1;
    LoadValues(tiles, memory, first / tiles.topk, begin, here, pitch, thread);
    MeetForTile();
    StoreValues(tiles, memory, begin, here, pitch, thread);
    MeetForTile();
  }
}

}  // namespace moe_ep::cuda
