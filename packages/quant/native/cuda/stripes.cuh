// Work that a few long-lived blocks share: stripes, of which a block takes one after the other. A
// block that comes late, for other work had its place, keeps nobody waiting: the others take what
// would have been its share. One claim for each stripe, for claims of all warps meet in memory.
#pragma once

#include <cstdint>

#include "moe_ep/cuda/bulk_copy.cuh"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

// In global memory, zero before and after: how often blocks have claimed another stripe.
struct StripeClaims {
  unsigned int stripes;
};

// How the warp of a block that asked for a stripe hands it to the others.
template <int kWarps>
struct StripeMemory {
  static constexpr uint32_t kSlots = 4;  // so many stripes a warp may be ahead of another one

  uint64_t full[kSlots];
  uint64_t empty[kSlots];
  uint32_t stripe[kSlots];

  // Of a block, which meets before it goes on.
  __device__ __forceinline__ void Start() {
    if (threadIdx.x != 0) return;
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      InitBarrier(&full[slot], 1);
      InitBarrier(&empty[slot], kWarps);
    }
    FenceBarriers();
  }
  // The stripe after stripe number `turn` of the block. Of one thread.
  __device__ __forceinline__ void Put(uint32_t turn, uint32_t next) {
    const uint32_t slot = turn % kSlots;
    if (turn >= kSlots) WaitBarrier(&empty[slot], (turn / kSlots - 1) & 1u);
    stripe[slot] = next;
    Arrive(&full[slot]);
  }
  // Of each warp.
  __device__ __forceinline__ uint32_t Take(uint32_t turn) {
    const uint32_t slot = turn % kSlots;
    uint32_t next = 0;
    if (LaneOfWarp() == 0) {
      WaitBarrier(&full[slot], turn / kSlots & 1u);
      next = stripe[slot];
      Arrive(&empty[slot]);
    }
    return __shfl_sync(kFullWarp, next, 0);
  }
};

// Calls body(stripe) in all warps of a block for each of its stripes. All threads of all blocks
// come here with the same count, at most 2^31: or claims are left behind, and what is launched
// later on the stream passes over as many stripes.
template <int kWarps, typename Body>
__device__ __forceinline__ void ForStripes(StripeMemory<kWarps>& memory, StripeClaims* claims,
                                           uint32_t count, const Body& body) {
  const uint32_t warp = threadIdx.x / 32;
  uint32_t stripe = blockIdx.x;
#pragma unroll 1
  for (uint32_t turn = 0; stripe < count; ++turn) {
    // Each time another warp asks for the next one. Who has a stripe claims once, whatever comes of
    // it: that makes `count` claims, of which the last one leaves zero.
    if (warp == turn % kWarps && LaneOfWarp() == 0)
      memory.Put(turn, gridDim.x + atomicInc(&claims->stripes, count - 1));
    body(stripe);
    stripe = memory.Take(turn);
  }
}

}  // namespace moe_ep::cuda
