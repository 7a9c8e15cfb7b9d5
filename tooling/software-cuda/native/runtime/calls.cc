// Errors, devices, and who may call.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "software_cuda.h"

namespace software_cuda {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;
thread_local int host_functions = 0;
std::atomic<bool> down = false;

const char* NameOf(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorPeerAccessAlreadyEnabled:
      return "cudaErrorPeerAccessAlreadyEnabled";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnjoined:
      return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
    case cudaErrorStreamCaptureImplicit:
      return "cudaErrorStreamCaptureImplicit";
    case cudaErrorStreamCaptureWrongThread:
      return "cudaErrorStreamCaptureWrongThread";
    case cudaErrorCapturedEvent:
      return "cudaErrorCapturedEvent";
    default:
      return "an error of the software runtime";
  }
}

}  // namespace

void Misuse(const std::string& what) {
  std::fprintf(stderr, "software cuda: %s\n", what.c_str());
  std::abort();
}

Call::Call(const char* name) : name_(name) {
  // Before any exit handler of those who call, so that theirs run first.
  static const int registered = std::atexit([] { down = true; });
  (void)registered;
  if (down) Misuse(std::string(name) + " after the runtime was taken down");
  if (host_functions > 0) Misuse(std::string(name) + " in a host function");
}

cudaError_t Call::End(cudaError_t status) const {
  if (status != cudaSuccess) last_error = status;
  return status;
}

InHostFunction::InHostFunction() { ++host_functions; }
InHostFunction::~InHostFunction() { --host_functions; }

int CurrentDevice() { return current_device; }

int DeviceCount() {
  static const int count = [] {
    const char* const asked = std::getenv("MOE_EP_SOFTWARE_GPUS");
    return asked == nullptr ? 2 : std::atoi(asked);
  }();
  return count;
}

}  // namespace software_cuda

using software_cuda::Call;

extern "C" {

cudaError_t cudaGetLastError() {
  const Call call("cudaGetLastError");
  return std::exchange(software_cuda::last_error, cudaSuccess);
}

const char* cudaGetErrorName(cudaError_t error) { return software_cuda::NameOf(error); }
const char* cudaGetErrorString(cudaError_t error) { return software_cuda::NameOf(error); }

cudaError_t cudaGetDeviceCount(int* count) {
  const Call call("cudaGetDeviceCount");
  *count = software_cuda::DeviceCount();
  return call.End(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  const Call call("cudaSetDevice");
  if (device < 0 || device >= software_cuda::DeviceCount()) return call.End(cudaErrorInvalidDevice);
  software_cuda::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const Call call("cudaGetDeviceProperties");
  *properties = {};
  std::strcpy(properties->name, "software");
  properties->uuid.bytes[15] = static_cast<char>(device);
  properties->totalGlobalMem = software_cuda::kDeviceBytes;
  properties->multiProcessorCount = software_cuda::kMultiprocessors;
  properties->major = 9;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const Call call("cudaDeviceGetAttribute");
  if (attribute != cudaDevAttrMultiProcessorCount) return call.End(cudaErrorInvalidValue);
  *value = software_cuda::kMultiprocessors;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  const Call call("cudaDeviceGetStreamPriorityRange");
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const Call call("cudaMemGetInfo");
  *total_bytes = software_cuda::kDeviceBytes;
  constexpr uint64_t kOwn = 1 << 20;  // a context takes some
  *free_bytes = *total_bytes - kOwn - software_cuda::AllocatedBytes(software_cuda::CurrentDevice());
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  const Call call("cudaDeviceCanAccessPeer");
  *can = device != peer;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
  const Call call("cudaDeviceEnablePeerAccess");
  static std::mutex mutex;
  static auto* const enabled = new std::vector<std::pair<int, int>>;
  std::lock_guard lock(mutex);
  const std::pair wanted(software_cuda::CurrentDevice(), peer);
  for (const auto& pair : *enabled) {
    if (pair == wanted) return call.End(cudaErrorPeerAccessAlreadyEnabled);
  }
  enabled->push_back(wanted);
  return cudaSuccess;
}

}  // extern "C"
