// Hopper's bulk copies between global and shared memory, and the barriers that tell of their end.
// Addresses and sizes are multiples of 16 bytes. One thread issues a copy; any number wait.
#pragma once

#include <cstdint>

namespace moe_ep::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// One thread makes the barriers; the others see them after FenceBarriers() and a block barrier.
__device__ __forceinline__ void InitBarrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void FenceBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// Arrives, and says how many bytes the phase still has to receive.
__device__ __forceinline__ void ArriveExpecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
// Whether the phase with this parity has ended: 0 for the first.
__device__ __forceinline__ bool TryBarrier(uint64_t* barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile(
      "{\n"
      ".reg .pred passed;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 passed, [%1], %2;\n"
      "selp.u32 %0, 1, 0, passed;\n"
      "}\n"
      : "=r"(passed)
      : "r"(SharedAddress(barrier)), "r"(parity)
      : "memory");
  return passed != 0;
}
// Waits until it has. Lanes may wait for different barriers.
__device__ __forceinline__ void WaitBarrier(uint64_t* barrier, uint32_t parity) {
  while (!TryBarrier(barrier, parity)) {
  }
}
// The same for who is far ahead of others: looking again and again would take their turns.
__device__ __forceinline__ void WaitBarrierIdly(uint64_t* barrier, uint32_t parity) {
  while (!TryBarrier(barrier, parity)) __nanosleep(64);
}

__device__ __forceinline__ void BulkLoad(void* shared, const void* global, uint32_t bytes,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

// Stores are told of by groups: commit, then wait until at most so many groups are left.
__device__ __forceinline__ void BulkStore(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
               "r"(SharedAddress(shared)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitBulkStores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// The shared memory of all but the newest kLeft groups was read and may be written again.
template <int kLeft>
__device__ __forceinline__ void WaitBulkStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kLeft) : "memory");
}
template <int kLeft>
__device__ __forceinline__ void WaitBulkStores() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kLeft) : "memory");
}
// Between ordinary accesses of global memory and bulk copies of the same bytes, on the side of who
// wrote and on that of who reads.
__device__ __forceinline__ void FenceGlobalForBulk() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
// Before a bulk store of what ordinary stores put into shared memory: each writer calls it, then
// the block synchronises.
__device__ __forceinline__ void FenceSharedForBulk() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace moe_ep::cuda
