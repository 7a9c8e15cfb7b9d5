// Errors of the CUDA runtime as C++ exceptions; streams and bindings turn them into coded errors.
#pragma once

#include <cuda_runtime_api.h>

#include <new>
#include <stdexcept>
#include <string>

namespace moe_ep::cuda {

// Throws std::bad_alloc where memory ran out, else std::runtime_error with CUDA's name of the
// error.
inline void Check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + ")");
}

}  // namespace moe_ep::cuda
