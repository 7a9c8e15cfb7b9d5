// The finished placement as the kernels that move rows see it: which row a slot goes to.
#pragma once

#include <cstdint>

#include "cuda/warp.cuh"

namespace moe_ep::cuda {

// Where the experts' rows lie. starts[num_local] is where the last expert's padding ends. In shared
// memory, or in global memory that another kernel has written: only who has waited for that kernel
// may read it, and then reads what is in the first-level cache from the second time on.
struct Segments {
  const int32_t* starts;
  const int32_t* counts;
  int64_t num_local;

  __device__ __forceinline__ int32_t Start(int64_t expert) const { return starts[expert]; }
  __device__ __forceinline__ int32_t Count(int64_t expert) const { return counts[expert]; }
  __device__ __forceinline__ int32_t needed() const { return starts[num_local]; }

  // The expert whose rows or padding this row, below needed(), belongs to.
  __device__ __forceinline__ int64_t ExpertOf(int64_t row) const {
    int64_t low = 0;  // starts at or before the row
    int64_t high = num_local;
#pragma unroll 1
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (Start(middle) <= row) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// From the plan of many blocks: slots come in chunks of a power of two; a slot's word is its group
// and its rank in the chunk, and `prefix` [chunks, groups] counts the group's slots before a chunk.
struct ChunkedRows {
  static constexpr uint32_t kNoWord = 0xffffffffu;

  const uint32_t* words;   // in global memory
  const uint32_t* prefix;  // where the segments are
  Segments segments;
  int64_t num_slots;
  int64_t num_groups;
  int shift;  // of slots to chunks, and of words to groups

  __device__ __forceinline__ uint32_t Word(int64_t slot) const { return __ldcg(words + slot); }

  __device__ __forceinline__ int32_t RowOfWord(uint32_t word, int64_t slot) const {
    if (word == kNoWord) return -1;
    const int64_t group = word >> shift;
    const uint32_t before = prefix[(slot >> shift) * num_groups + group];
    return segments.Start(group) + static_cast<int32_t>(before + RankIn(word));
  }

  __device__ __forceinline__ int32_t operator[](int64_t slot) const {
    return RowOfWord(Word(slot), slot);
  }

  // The row of a slot with a local expert; -1 for others.
  __device__ __forceinline__ int32_t LocalRowOfWord(uint32_t word, int64_t slot) const {
    if (word == kNoWord || (word >> shift) >= segments.num_local) return -1;
    return RowOfWord(word, slot);
  }

 private:
  __device__ __forceinline__ uint32_t RankIn(uint32_t word) const {
    return word & ((1u << shift) - 1u);
  }
};

// From a placement that a block has worked out for itself, in shared memory.
struct SharedRows {
  const int32_t* rows;
  Segments segments;
  int64_t num_slots;

  __device__ __forceinline__ int32_t operator[](int64_t slot) const { return rows[slot]; }
  // No word is loaded ahead: rows are at hand.
  __device__ __forceinline__ uint32_t Word(int64_t slot) const { return 0; }
  __device__ __forceinline__ int32_t LocalRowOfWord(uint32_t word, int64_t slot) const {
    const int32_t row = rows[slot];
    return row < segments.needed() ? row : -1;
  }
};

}  // namespace moe_ep::cuda
