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
  static constexpr int kThreads = 256;
  static constexpr int kMostSlots = 2048;
  static constexpr int kFewestTokens = 32;
  static constexpr int kMostTokens = 256;
  static constexpr int kMostValues = 7424;

  LooseScales scales;
  int64_t topk;
  int64_t num_slots;
  int32_t slots;    // of a tile: those of whole tokens, or a part of those of one or two
  int32_t tokens;   // that these may belong to
  int32_t columns;  // of the output that are in shared memory at once
  int64_t num_tiles;

  // Large tiles have more rows of each expert that are written together, but each block takes one
  // at a time: two for every three blocks keep memory busy and leave nobody behind.
  static ScaleTiles Of(const LooseScales& scales, int64_t num_tokens, int64_t topk, int blocks) {
    ScaleTiles tiles = {.scales = scales, .topk = topk, .num_slots = num_tokens * topk};
    const int64_t share =
        std::clamp<int64_t>(num_tokens * 3 / (2 * blocks), kFewestTokens, kMostTokens);
    const int64_t tokens = std::clamp<int64_t>(kMostSlots / topk, 1, share);
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

// The warps of a block that share its tiles.
struct TileTeam {
  ScaleTileMemory* memory;
  int thread;  // of the team

  __device__ __forceinline__ void Meet() const {
    asm volatile("bar.sync 1, %0;" ::"n"(ScaleTiles::kThreads) : "memory");
  }
};

// A word from global to shared memory past the registers, for the thread that waits for it.
__device__ __forceinline__ void CopyWordAsync(uint32_t* to, const uint8_t* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
// A byte, or 0 where it is not wanted: without a branch, so that many of them are on their way.
__device__ __forceinline__ uint32_t LoadByteIf(bool wanted, const uint8_t* from) {
  uint32_t byte;
  asm volatile(
      "{\n"
      " .reg .pred wanted;\n"
      " setp.ne.s32 wanted, %1, 0;\n"
      " mov.u32 %0, 0;\n"
      " @wanted ld.global.nc.u8 %0, [%2];\n"
      "}"
      : "=r"(byte)
      : "r"(static_cast<int>(wanted)), "l"(from));
  return byte;
}
__device__ __forceinline__ void WaitForWords() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Calls use(item, line, step) so that with the kTogether - 1 lines that follow in these steps, all
// lines and items are met. Neighbouring threads have neighbouring items.
template <int kTogether, typename Use>
__device__ __forceinline__ void ForItems(int thread, int lines, int items, const Use& use) {
  int width = kWarp;
  while (width > 1 && width / 2 >= items) width /= 2;
  const int step = ScaleTiles::kThreads / width;
#pragma unroll 1
  for (int item = thread % width; item < items; item += width)
#pragma unroll 1
    for (int line = thread / width; line < lines; line += kTogether * step) use(item, line, step);
}

// Brings the rows of a tile's slots into shared memory, and which tokens have any.
template <typename Rows>
__device__ __forceinline__ void FindRows(const Rows& rows, const ScaleTiles& tiles,
                                         const TileTeam& team, int64_t first) {
  constexpr int kTogether = ScaleTiles::kMostSlots / ScaleTiles::kThreads;
  ScaleTileMemory* const memory = team.memory;
  const int64_t behind = first + tiles.slots;
  const int64_t end = behind < tiles.num_slots ? behind : tiles.num_slots;
  const int64_t first_token = first / tiles.topk;
  uint32_t word[kTogether];
  int32_t row[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t slot = first + i * ScaleTiles::kThreads + team.thread;
    word[i] = slot < end ? rows.Word(slot) : 0;
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const int64_t slot = first + i * ScaleTiles::kThreads + team.thread;
    row[i] = slot < end ? rows.LocalRowOfWord(word[i], slot) : -1;
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    const uint32_t lanes = __ballot_sync(kAllLanes, row[i] >= 0);
    int32_t base = 0;
    if (Lane() == 0 && lanes != 0) base = atomicAdd(&memory->count, __popc(lanes));
    base = __shfl_sync(kAllLanes, base, 0);
    if (row[i] < 0) continue;
    const int64_t slot = first + i * ScaleTiles::kThreads + team.thread;
    const auto token = static_cast<uint32_t>(slot / tiles.topk - first_token);
    memory->places[base + __popc(lanes & LanesBelow(Lane()))] = (int64_t{row[i]} << 8) | token;
    atomicOr(&memory->needed[token / kWarp], 1u << token % kWarp);
  }
}

// Brings the rows into order, of which there is one, for they differ, and makes places of them.
__device__ __forceinline__ void SortPlaces(const ScaleTiles& tiles, const TileTeam& team) {
  int64_t* const places = team.memory->places;
  const int count = team.memory->count;
  int size = 2;
#pragma unroll 1
  while (size < count) size *= 2;
#pragma unroll 1
  for (int i = count + team.thread; i < size; i += ScaleTiles::kThreads) places[i] = INT64_MAX;
  team.Meet();
#pragma unroll 1
  for (int run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int distance = run / 2; distance > 0; distance /= 2) {
#pragma unroll 1
      for (int pair = team.thread; pair < size / 2; pair += ScaleTiles::kThreads) {
        const int low = 2 * pair - (pair & (distance - 1));
        const int64_t a = places[low];
        const int64_t b = places[low + distance];
        if ((a > b) == ((low & run) == 0)) {
          places[low] = b;
          places[low + distance] = a;
        }
      }
      team.Meet();
    }
  }
#pragma unroll 1
  for (int i = team.thread; i < count; i += ScaleTiles::kThreads)
    places[i] = (tiles.scales.move.OffsetOf(places[i] >> 8) << 8) | (places[i] & 255);
}

// Columns of a tile that are in shared memory at once.
struct TileColumns {
  int64_t begin;
  int count;
  int pitch;  // odd: neither tokens nor columns of a warp meet in a bank
};

// Starts to bring columns of a tile's tokens from where they lie into shared memory.
__device__ __forceinline__ void LoadValues(const ScaleTiles& tiles, const TileTeam& team,
                                           int64_t first_token, const TileColumns& columns) {
  constexpr int kTogether = 8;
  constexpr int kParts = 4;
  const LooseScales& scales = tiles.scales;
  ScaleTileMemory* const memory = team.memory;
  const int64_t behind = (tiles.num_slots - 1) / tiles.topk + 1;
  const int tokens =
      behind - first_token < tiles.tokens ? static_cast<int>(behind - first_token) : tiles.tokens;
  // What lies together is read by neighbouring threads.
  const bool by_row = scales.move.from_column_stride <= scales.move.from_row_stride;
  const int lines = by_row ? tokens : columns.count;
  const int items = by_row ? columns.count : tokens;
  const auto needs = [&](int token) {
    return (memory->needed[token / kWarp] >> token % kWarp & 1u) != 0;
  };
  if (scales.CopiesWords()) {
    // All of them at once: memory is busy, and each way there takes long.
    ForItems<1>(team.thread, lines, items, [&](int item, int line, int) {
      const int token = by_row ? line : item;
      const int column = by_row ? item : line;
      if (needs(token))
        CopyWordAsync(memory->values + token * columns.pitch + column,
                      scales.WordAt(first_token + token, columns.begin + column));
    });
    return;
  }
  // Bytes: one for an element, or four that become a word.
  const int parts = scales.move.pack ? kParts : 1;
  const int64_t end = scales.move.columns;
  ForItems<kTogether>(team.thread, lines, items, [&](int item, int line, int step) {
    uint32_t byte[kTogether][kParts];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int at = line + i * step;
      const int token = by_row ? at : item;
      const int64_t column = (columns.begin + (by_row ? item : at)) * parts;
      const bool wanted = at < lines && needs(token);
      const uint8_t* const from = scales.move.from +
                                  (first_token + token) * scales.move.from_row_stride +
                                  column * scales.move.from_column_stride;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        byte[i][part] = LoadByteIf(wanted && part < parts && column + part < end,
                                   from + part * scales.move.from_column_stride);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int at = line + i * step;
      const int token = by_row ? at : item;
      const int column = by_row ? item : at;
      if (at < lines && needs(token))
        memory->values[token * columns.pitch + column] =
            byte[i][0] | byte[i][1] << 8 | byte[i][2] << 16 | byte[i][3] << 24;
    }
  });
}

// The same columns, from there to the rows.
__device__ __forceinline__ void StoreValues(const ScaleTiles& tiles, const TileTeam& team,
                                            const TileColumns& columns) {
  constexpr int kTogether = 4;
  const LooseScales& scales = tiles.scales;
  const ScaleTileMemory& memory = *team.memory;
  const bool by_row = scales.move.to_column_stride <= scales.move.to_row_stride;
  const int lines = by_row ? memory.count : columns.count;
  const int items = by_row ? columns.count : memory.count;
  ForItems<kTogether>(team.thread, lines, items, [&](int item, int line, int step) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int at = line + i * step;
      if (at >= lines) break;
      const int64_t place = memory.places[by_row ? at : item];
      const int column = by_row ? item : at;
      scales.Store(
          scales.move.to + (place >> 8) + (columns.begin + column) * scales.move.to_column_stride,
          memory.values[(place & 255) * columns.pitch + column]);
    }
  });
}

template <typename Rows>
__device__ inline void MoveScaleTile(const Rows& rows, const ScaleTiles& tiles,
                                     const TileTeam& team, int64_t tile) {
  const int64_t first = tile * tiles.slots;
  if (team.thread == 0) team.memory->count = 0;
  if (team.thread < ScaleTiles::kMostTokens / kWarp) team.memory->needed[team.thread] = 0;
  team.Meet();
  FindRows(rows, tiles, team, first);
  team.Meet();
  const int64_t num_columns = tiles.scales.move.to_columns();
#pragma unroll 1
  for (int64_t begin = 0; begin < num_columns; begin += tiles.columns) {
    const int64_t left = num_columns - begin;
    const TileColumns columns = {
        .begin = begin,
        .count = left < tiles.columns ? static_cast<int>(left) : tiles.columns,
        .pitch = tiles.columns | 1,
    };
    LoadValues(tiles, team, first / tiles.topk, columns);
    // Beside the first loads.
    if (begin == 0) SortPlaces(tiles, team);
    WaitForWords();
    team.Meet();
    StoreValues(tiles, team, columns);
    team.Meet();
  }
}

}  // namespace moe_ep::cuda
