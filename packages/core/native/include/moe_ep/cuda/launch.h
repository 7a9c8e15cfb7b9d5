// Launches of kernels from CUDA files, with their errors.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

inline constexpr int kMaxDevices = 64;

// Multiprocessors of a device, asked for once.
inline int Multiprocessors(int device) {
  static std::array<std::atomic<int>, kMaxDevices> known{};
  int count = known[device].load(std::memory_order_relaxed);
  if (count != 0) return count;
  Check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  known[device].store(count, std::memory_order_relaxed);
  return count;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  int64_t shared_bytes = 0;  // dynamic
  // The kernel may start while the one before it on the stream still runs, and calls
  // cudaGridDependencySynchronize() before it touches anything that one writes.
  bool overlaps_previous = false;
  // The multiprocessor's memory is shared memory as far as can be: kernels that overlap must want
  // the same division, or the later one waits until the earlier one has left.
  bool most_shared = false;
};

// Launches `kernel(arguments...)` on a cudaStream_t. Nothing is launched for an empty grid.
template <typename... Parameters, typename... Values>
void Launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream,
            Values&&... arguments) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  // More than 48 KiB, what the kernel itself declares counted, must be asked for, once for each
  // kernel and device; asking again is cheap enough where so much is used.
  if (shape.shared_bytes > (32 << 10)) {
    Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          "cudaFuncSetAttribute");
  }
  if (shape.most_shared) {
    Check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "cudaFuncSetAttribute");
  }
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = shape.overlaps_previous ? 1 : 0;
  Check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
        "cudaLaunchKernelEx");
}

// Blocks of a grid-stride kernel: enough for `items` pieces of work, at most `per_multiprocessor`
// on each multiprocessor.
inline dim3 GridFor(int64_t items, int device, int per_multiprocessor) {
  const int64_t most = static_cast<int64_t>(Multiprocessors(device)) * per_multiprocessor;
  return dim3(static_cast<unsigned>(items < most ? items : most));
}

}  // namespace moe_ep::cuda
