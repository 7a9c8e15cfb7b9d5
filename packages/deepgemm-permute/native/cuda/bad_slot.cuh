// The lowest slot that cannot be taken, found by many threads and reported by one.
#pragma once

#include <cstdint>

#include "cuda/failures.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/deepgemm_permute/local_experts.h"

namespace moe_ep::cuda {

// Kept so that zero, which new scratch memory holds, means "none": the lowest slot is the largest
// complement.
using BadSlot = unsigned long long;

__device__ __forceinline__ void NoteBadSlot(BadSlot* bad, int64_t slot) {
  atomicMax(bad, ~static_cast<BadSlot>(slot));
}
__device__ __forceinline__ int64_t SlotOf(BadSlot bad) { return static_cast<int64_t>(~bad); }

// Reports the slot's id. One thread calls it.
__device__ inline void FailForSlot(moe_ep_failure_record* failure, const Describers& describers,
                                   const LocalExperts& experts, int64_t slot, int64_t topk) {
  const int64_t id = experts.Id(slot);
  const int64_t token = slot / topk;
  if (experts.map != nullptr && id >= 0 && id < experts.num_global) {
    Fail(failure, describers.expert_map, experts.map[id], id, experts.num_local, token,
         slot % topk);
  } else {
    Fail(failure, describers.topk_idx, id, experts.num_global, token, slot % topk);
  }
}

}  // namespace moe_ep::cuda
