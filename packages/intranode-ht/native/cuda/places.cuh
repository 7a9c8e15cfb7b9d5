// Where a rank's own selections are, left for the ranks that have their rows.
#pragma once

#include "cuda/device_buffer.cuh"
#include "moe_ep/cuda/bulk_copy.cuh"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {

// The rank that has a selection's row; negative for none. A plan that is used again may have been
// made for other ids: such a selection leads nowhere.
__device__ __forceinline__ int32_t RankOfSelection(const ExpertPlacement& placement, int32_t row,
                                                   int64_t expert) {
  const bool there = row >= 0 && expert >= 0 && expert < placement.experts;
  return there ? static_cast<int32_t>(placement.RankOf(expert)) : -1;
}

struct PlacesArguments {
  DeviceBuffer buffer;
  ExpertPlacement placement;
  int64_t tokens;
  int64_t topk;
  TopkIds ids;           // [T, K]
  const int32_t* rows;   // [T, K]
  const float* weights;  // [T, K], or null
};

// Of one run. All threads of a block call it.
__device__ inline void WritePlaces(const PlacesArguments& a, int64_t run) {
  const TokenPlaces places = a.buffer.PlacesOf(a.buffer.rank(), run, a.topk);
  const int64_t begin = run * kRunTokens * a.topk;
  const int64_t count = min(kRunTokens * a.topk, a.tokens * a.topk - begin);
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    const int32_t row = a.rows[begin + i];
    places.rows()[i] = row;
    places.weights()[i] = a.weights == nullptr ? 0.0f : a.weights[begin + i];
    places.ranks()[i] = static_cast<uint8_t>(RankOfSelection(a.placement, row, a.ids[begin + i]));
  }
}

// Records of other ranks on their way through shared memory, two at a time, for a group's loader.
struct PlacesWindow {
  uint8_t* stages;  // two
  uint64_t* full;   // two
  int64_t bytes;
  int64_t topk;

  // One thread calls it, for records in the order in which they will be used.
  __device__ void Fetch(int number, const TokenPlaces& from) const {
    ArriveExpecting(&full[number % 2], static_cast<uint32_t>(bytes));
    BulkLoad(stages + number % 2 * bytes, from.base, static_cast<uint32_t>(bytes),
             &full[number % 2]);
  }
  // The record of this number, once it is here.
  __device__ TokenPlaces Await(int number) const {
    WaitBarrier(&full[number % 2], static_cast<uint32_t>(number / 2 % 2));
    return {stages + number % 2 * bytes, topk};
  }
};

}  // namespace moe_ep::cuda
