#include "cuda/device_words.h"

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>

#include "moe_ep/cuda/check.h"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

// One a device, for as long as the process lives. It does not wait for the default stream.
cudaStream_t AuxiliaryStream(int device) {
  static std::mutex mutex;
  static std::array<cudaStream_t, kMaxDevices> streams{};
  std::lock_guard lock(mutex);
  cudaStream_t& stream = streams.at(device);
  if (stream == nullptr) {
    int least = 0;
    int greatest = 0;
    Check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    Check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest),
          "cudaStreamCreate");
  }
  return stream;
}

void Copy(int device, void* to, const void* from, uint64_t bytes) {
  Check(cudaSetDevice(device), "cudaSetDevice");
  const cudaStream_t stream = AuxiliaryStream(device);
  Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
  Check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

}  // namespace

uint64_t ReadDeviceWord(int device, const void* from) {
  uint64_t word = 0;
  Copy(device, &word, from, sizeof(word));
  return word;
}

void WriteDeviceMemory(int device, void* to, const void* from, uint64_t bytes) {
  Copy(device, to, from, bytes);
}

}  // namespace moe_ep::cuda
