// The block of a grid that ends last.
#pragma once

namespace moe_ep::cuda {

// Counts the blocks of a grid that have come here, as all of them must, whatever they did before;
// true for all threads of the last one, which then sees what the others wrote. `arrived` is zero
// before and after.
__device__ __forceinline__ bool IsLastBlock(unsigned int* arrived) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    if (last) *arrived = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace moe_ep::cuda
