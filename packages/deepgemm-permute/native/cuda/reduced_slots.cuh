// What the kernels of unpermute.cu work on: slots, the rows that they add, and whether all of these
// can be read.
#pragma once

#include <cstdint>

#include "cuda/bad_slot.cuh"
#include "moe_ep/cuda/failure.cuh"
#include "requests.h"

namespace moe_ep::cuda {

inline constexpr int64_t kNoRow = -1;
inline constexpr int64_t kBadRow = -2;

// Zero between commands.
struct ReduceState {
  unsigned int finished;  // blocks of the check
  BadSlot bad;
  unsigned long long
      claims;  // of the kernel that sums: batches taken beyond each group's first three
};

struct ReduceArguments {
  bool has_experts;
  LocalExperts experts;
  const int64_t* num_valid_rows;
  const int32_t* row_of_slot;
  const float* weights;
  int64_t num_tokens;
  int64_t topk;
  int64_t hidden;
  const uint8_t* rows;
  int64_t row_bytes;  // from row to row
  int64_t num_rows;
  uint8_t* out;
  int64_t out_row_bytes;
  Describers describers;
  moe_ep_failure_record* failure;
  ReduceState* state;  // null: every block checks

  __host__ __device__ int64_t num_slots() const { return num_tokens * topk; }
};

// What memory says of a slot, asked for long before it is needed.
struct Slot {
  int64_t id;
  int32_t row;
  float weight;
};

__device__ __forceinline__ Slot LoadSlot(const ReduceArguments& a, int64_t slot) {
  return {.id = a.has_experts ? a.experts.Id(slot) : 0,
          .row = a.row_of_slot[slot],
          .weight = a.weights[slot]};
}

// The row that a slot adds, kNoRow, or kBadRow when its id or row is out of range.
__device__ __forceinline__ int64_t RowOf(const ReduceArguments& a, int64_t id, int32_t row) {
  if (a.has_experts) {
    const int64_t expert = a.experts.OfId(id);
    if (expert == kNoExpert) return kNoRow;
    if (expert == kInvalidExpert) return kBadRow;
  }
  if (a.num_valid_rows != nullptr && row >= __ldg(a.num_valid_rows)) return kNoRow;
  return row >= 0 && row < a.num_rows ? row : kBadRow;
}

__device__ __forceinline__ bool IsBad(const ReduceArguments& a, int64_t slot) {
  return RowOf(a, a.has_experts ? a.experts.Id(slot) : 0, a.row_of_slot[slot]) == kBadRow;
}

__device__ inline void FailForBadSlot(const ReduceArguments& a, int64_t slot) {
  if (a.has_experts && a.experts[slot] == kInvalidExpert)
    return FailForSlot(a.failure, a.describers, a.experts, slot, a.topk);
  Fail(a.failure, a.describers.inverse_permutation, a.num_rows, a.row_of_slot[slot], slot / a.topk,
       slot % a.topk);
}

// Whether sums may be written. All threads of a block call it.
__device__ inline bool MayWrite(const ReduceArguments& a) {
  if (a.state != nullptr) {
    cudaGridDependencySynchronize();
    return !Failed(a.failure);
  }
  __shared__ BadSlot lowest;
  if (threadIdx.x == 0) lowest = 0;
  bool bad = Failed(a.failure);
  const bool failed = bad;
  __syncthreads();
#pragma unroll 8
  for (int64_t slot = threadIdx.x; slot < a.num_slots(); slot += blockDim.x) {
    if (!IsBad(a, slot)) continue;
    NoteBadSlot(&lowest, slot);
    bad = true;
  }
  if (!__syncthreads_or(bad)) return true;
  if (blockIdx.x == 0 && threadIdx.x == 0 && !failed) FailForBadSlot(a, SlotOf(lowest));
  return false;
}

}  // namespace moe_ep::cuda
