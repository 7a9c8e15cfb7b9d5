// Scales that do not travel with their rows: columns lie apart in the output, or are packed, or
// rows of them are no multiples of 16 bytes, or rows are short and many. Of few tokens, whoever
// moves a row puts its scales in place, one element a lane. Scales of many tokens go in tiles:
// scale_tiles.cuh.
#pragma once

#include <cstdint>

#include "cuda/warp.cuh"
#include "requests.h"

namespace moe_ep::cuda {

struct LooseScales {
  ScaleMove move;
  bool words;  // four exponents to pack lie in one aligned word

  // Calls for a token's scales to come closer, where they lie together.
  __device__ __forceinline__ void Prefetch(int64_t token) const {
    if (move.from_column_stride != move.element_bytes) return;
    constexpr int64_t kLine = 128;
    const uint8_t* const from = move.from + token * move.from_row_stride;
#pragma unroll 1
    for (int64_t at = 0; at < move.columns * move.element_bytes; at += kLine)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  }

  // Scales of a token to the rows of all lanes that have one; -1 for none.
  __device__ __forceinline__ void Move(int64_t token, int32_t row) const {
    constexpr int kTogether = 2;
    const uint32_t places = __ballot_sync(kAllLanes, row >= 0);
    const int64_t offset = row < 0 ? 0 : move.OffsetOf(row);
    const int64_t columns = move.to_columns();
#pragma unroll 1
    for (int64_t begin = Lane(); begin - Lane() < columns; begin += kTogether * kWarp) {
      uint32_t value[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (begin + i * kWarp < columns) value[i] = Load(token, begin + i * kWarp);
#pragma unroll 1
      for (uint32_t left = places; left != 0; left &= left - 1) {
        uint8_t* const to =
            move.to + __shfl_sync(kAllLanes, offset, __ffs(static_cast<int>(left)) - 1);
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
          if (begin + i * kWarp < columns)
            Store(to + (begin + i * kWarp) * move.to_column_stride, value[i]);
      }
    }
  }

  // Whether elements of the output are words of the input, and where.
  __device__ __forceinline__ bool CopiesWords() const {
    return move.pack ? words && move.columns % 4 == 0 : move.element_bytes == 4;
  }
  __device__ __forceinline__ const uint8_t* WordAt(int64_t token, int64_t column) const {
    return move.from + token * move.from_row_stride +
           column * (move.pack ? 4 : move.from_column_stride);
  }

  __device__ __forceinline__ void Store(uint8_t* place, uint32_t value) const {
    if (move.to_element_bytes() == 4) {
      *reinterpret_cast<uint32_t*>(place) = value;
    } else {
      *place = static_cast<uint8_t>(value);
    }
  }

  // One element of the output's scales, in its low bytes.
  __device__ __forceinline__ uint32_t Load(int64_t token, int64_t column) const {
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
};

}  // namespace moe_ep::cuda
