// What the launches of all operations share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe_ep/command.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/dtype.h"
#include "moe_ep/quant/elements.h"

namespace moe_ep::cuda {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr uint32_t CeilDiv(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// What a kernel of this package begins with: nothing that is ahead on the stream is touched before,
// and who comes next may take its place as soon as all blocks are here.
//
// A kernel that comes directly behind another one of the same call may do before it what that one
// need not have ended for. What was ahead of both is there: the first one waited for it before it
// let the second one go.
__device__ __forceinline__ void StartBehindPrevious() {
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
}

// Launches a kernel with a StartBehindPrevious() in it.
template <typename Kernel, typename... Arguments>
void LaunchBehind(const Exec& exec, Kernel kernel, dim3 grid, int threads,
                  const Arguments&... arguments) {
  Launch(kernel, {.grid = grid, .block = dim3(threads), .overlaps_previous = true},
         exec.cuda_stream(), arguments...);
}

// Whether vectors of 16 bytes may be read and written from these places on.
template <typename... Pointers>
bool Aligned16(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// One block for each `per_block` of `items`; more than the device takes are refused by the launch.
inline dim3 BlocksFor(int64_t items, int64_t per_block) {
  return dim3(static_cast<unsigned>(std::min<int64_t>(CeilDiv(items, per_block), 0xffffffff)));
}

// Calls body(Element()) with the element type of `dtype`.
template <typename Body>
void WithElement(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kBF16:
      return body(BF16Element());
    case DType::kF16:
      return body(F16Element());
    default:
      return body(F32Element());
  }
}

}  // namespace moe_ep::cuda
