// The block of a grid that ends last.
#pragma once

namespace moe_ep::cuda {

// Who may see what the blocks wrote: the last block, or also other devices, once it signals.
enum class Reach { kDevice, kSystem };

// Counts the blocks of a grid that have come here, as all of them must, whatever they did before;
// true for all threads of the last one, which then sees what the others wrote. `arrived` is zero
// before and after.
template <Reach kReach = Reach::kDevice>
__device__ __forceinline__ bool IsLastBlock(unsigned int* arrived) {
  bool last = false;
  __syncthreads();
  if (threadIdx.x == 0) {
    // The addition itself releases and acquires, and is back at zero behind the last block: fences
    // around it, and a store, would be ways to memory of their own.
    const unsigned int others = gridDim.x - 1;
    unsigned int before;
    if constexpr (kReach == Reach::kSystem) {
      asm volatile("atom.acq_rel.sys.global.inc.u32 %0, [%1], %2;"
                   : "=r"(before)
                   : "l"(arrived), "r"(others)
                   : "memory");
    } else {
      asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                   : "=r"(before)
                   : "l"(arrived), "r"(others)
                   : "memory");
    }
    last = before == others;
  }
  return __syncthreads_or(last) != 0;
}

}  // namespace moe_ep::cuda
