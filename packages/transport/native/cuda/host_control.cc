#include "cuda/host_control.h"

#include <cuda_runtime_api.h>

#include "cuda/poison_texts.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

HostControl RegisterControl(int device, ControlBlock* control) {
  Check(cudaSetDevice(device), "cudaSetDevice");
  Check(cudaHostRegister(control, kControlBytes, cudaHostRegisterMapped | cudaHostRegisterPortable),
        "cudaHostRegister");
  void* seen = nullptr;
  const cudaError_t status = cudaHostGetDevicePointer(&seen, control, 0);
  if (status != cudaSuccess) {
    cudaHostUnregister(control);
    Check(status, "cudaHostGetDevicePointer");
  }
  const auto* state = &static_cast<const ControlBlock*>(seen)->poison.state;
  return {reinterpret_cast<const uint32_t*>(state), AddPoisonText(control)};
}

void UnregisterControl(int device, ControlBlock* control, int64_t poison_id) {
  KeepPoisonText(poison_id);
  cudaSetDevice(device);
  cudaHostUnregister(control);
  cudaGetLastError();
}

}  // namespace moe_ep::cuda
