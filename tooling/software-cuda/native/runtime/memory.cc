// Memory of devices and of the host, copies, and handles for other processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "software_cuda.h"

namespace software_cuda {
namespace {

// New memory holds this, not zeros.
constexpr int kPoison = 0xa5;
constexpr uint64_t kPoisonedBytes = uint64_t{64} << 20;

struct Allocations {
  std::mutex mutex;
  std::map<const uint8_t*, Allocation> by_base;
  std::map<int, uint64_t> mapped;  // bytes that the driver has made, by device
};
Allocations& TheAllocations() {
  static auto* const allocations = new Allocations;
  return *allocations;
}

bool ForbiddenNow() {
  std::lock_guard lock(CaptureMutex());
  return ForbiddenByCapture();
}

cudaError_t Allocate(void** pointer, uint64_t bytes, cudaMemoryType type) {
  *pointer = nullptr;
  if (ForbiddenNow()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  const int device = CurrentDevice();
  if (type == cudaMemoryTypeDevice && AllocatedBytes(device) + bytes > kDeviceBytes)
    return cudaErrorMemoryAllocation;
  const int descriptor = NewBytes(bytes);
  if (descriptor < 0) return cudaErrorMemoryAllocation;
  void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED) {
    close(descriptor);
    return cudaErrorMemoryAllocation;
  }
  std::memset(base, kPoison, std::min(bytes, kPoisonedBytes));
  const auto origin =
      type == cudaMemoryTypeDevice ? Allocation::Origin::kMalloc : Allocation::Origin::kHostAlloc;
  AddAllocation({static_cast<uint8_t*>(base), bytes, type, device, descriptor, origin});
  *pointer = base;
  return cudaSuccess;
}

// Waits for all that runs, as the real ones do.
cudaError_t Free(void* pointer, Allocation::Origin origin, const char* who) {
  if (ForbiddenNow()) return cudaErrorStreamCaptureUnsupported;
  if (pointer == nullptr) return cudaSuccess;
  WaitForDevices();
  const Allocation allocation = TakeAllocation(pointer, origin, who);
  munmap(allocation.base, allocation.bytes);
  close(allocation.descriptor);
  return cudaSuccess;
}

// What another process opens; fits into CUDA's handle.
struct IpcHandle {
  int64_t process;
  int64_t descriptor;
  uint64_t bytes;
};
static_assert(sizeof(IpcHandle) <= sizeof(cudaIpcMemHandle_t));

}  // namespace

bool FindAllocation(const void* pointer, uint64_t bytes, Allocation* found) {
  Allocations& allocations = TheAllocations();
  const auto* const at = static_cast<const uint8_t*>(pointer);
  std::lock_guard lock(allocations.mutex);
  auto next = allocations.by_base.upper_bound(at);
  if (next == allocations.by_base.begin()) return false;
  const Allocation& allocation = std::prev(next)->second;
  if (at >= allocation.base + allocation.bytes) return false;
  if (at + bytes > allocation.base + allocation.bytes) Misuse("work passes the end of its memory");
  *found = allocation;
  return true;
}

void AddAllocation(const Allocation& allocation) {
  std::lock_guard lock(TheAllocations().mutex);
  TheAllocations().by_base[allocation.base] = allocation;
}

Allocation TakeAllocation(const void* base, Allocation::Origin origin, const char* who) {
  Allocations& allocations = TheAllocations();
  std::lock_guard lock(allocations.mutex);
  const auto found = allocations.by_base.find(static_cast<const uint8_t*>(base));
  if (found == allocations.by_base.end()) Misuse(std::string(who) + " of memory that is not there");
  const Allocation taken = found->second;
  if (taken.origin != origin) Misuse(std::string(who) + " of memory that something else made");
  allocations.by_base.erase(found);
  return taken;
}

uint64_t AllocatedBytes(int device) {
  std::lock_guard lock(TheAllocations().mutex);
  uint64_t bytes = TheAllocations().mapped[device];
  for (const auto& [base, allocation] : TheAllocations().by_base) {
    if (allocation.origin == Allocation::Origin::kMalloc && allocation.device == device)
      bytes += allocation.bytes;
  }
  return bytes;
}

void CountMappedBytes(int device, int64_t bytes) {
  std::lock_guard lock(TheAllocations().mutex);
  TheAllocations().mapped[device] += static_cast<uint64_t>(bytes);
}

int NewBytes(uint64_t bytes) {
  const int descriptor = memfd_create("software-cuda", MFD_CLOEXEC);
  if (descriptor < 0 || ftruncate(descriptor, static_cast<off_t>(bytes)) == 0) return descriptor;
  close(descriptor);
  return -1;
}

}  // namespace software_cuda

using software_cuda::Allocation;
using software_cuda::Call;
using software_cuda::FindAllocation;
using software_cuda::IpcHandle;
using software_cuda::Submit;

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const Call call("cudaMalloc");
  return call.End(software_cuda::Allocate(pointer, bytes, cudaMemoryTypeDevice));
}

cudaError_t cudaFree(void* pointer) {
  const Call call("cudaFree");
  return call.End(software_cuda::Free(pointer, Allocation::Origin::kMalloc, call.name()));
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  const Call call("cudaHostAlloc");
  return call.End(software_cuda::Allocate(pointer, bytes, cudaMemoryTypeHost));
}

cudaError_t cudaFreeHost(void* pointer) {
  const Call call("cudaFreeHost");
  return call.End(software_cuda::Free(pointer, Allocation::Origin::kHostAlloc, call.name()));
}

// Memory of the caller that kernels are to see, too.
cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
  const Call call("cudaHostRegister");
  if (software_cuda::ForbiddenNow()) return call.End(cudaErrorStreamCaptureUnsupported);
  Allocation allocation;
  if (FindAllocation(pointer, 1, &allocation))
    return call.End(cudaErrorHostMemoryAlreadyRegistered);
  software_cuda::AddAllocation({static_cast<uint8_t*>(pointer), bytes, cudaMemoryTypeHost,
                                software_cuda::CurrentDevice(), -1,
                                Allocation::Origin::kHostRegister});
  return cudaSuccess;
}

// Waits for all that runs, as the real one does.
cudaError_t cudaHostUnregister(void* pointer) {
  const Call call("cudaHostUnregister");
  software_cuda::WaitForDevices();
  software_cuda::TakeAllocation(pointer, Allocation::Origin::kHostRegister, call.name());
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device_pointer, void* pointer, unsigned) {
  const Call call("cudaHostGetDevicePointer");
  Allocation allocation;
  if (!FindAllocation(pointer, 1, &allocation)) return call.End(cudaErrorInvalidValue);
  *device_pointer = pointer;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const Call call("cudaPointerGetAttributes");
  *attributes = {};
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->device = -1;
  Allocation allocation;
  if (!FindAllocation(pointer, 1, &allocation)) return cudaSuccess;
  attributes->type = allocation.type;
  attributes->device = allocation.device;
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  const Call call("cudaMemsetAsync");
  Allocation allocation;
  if (bytes > 0 && !FindAllocation(pointer, bytes, &allocation))
    return call.End(cudaErrorInvalidValue);
  return call.End(
      Submit(stream, cudaGraphNodeTypeMemset, [=] { std::memset(pointer, value, bytes); }));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const Call call("cudaMemcpyAsync");
  Allocation allocation;
  const bool from_known = bytes == 0 || FindAllocation(from, bytes, &allocation);
  const bool to_known = bytes == 0 || FindAllocation(to, bytes, &allocation);
  std::function<void()> work = [=] { std::memcpy(to, from, bytes); };
  if (!from_known) {
    // Memory of the host that is not pinned may change as soon as this returns.
    const auto* const first = static_cast<const uint8_t*>(from);
    work = [to, copy = std::vector<uint8_t>(first, first + bytes)] {
      std::memcpy(to, copy.data(), copy.size());
    };
  }
  const cudaError_t status = Submit(stream, cudaGraphNodeTypeMemcpy, std::move(work));
  // And may be looked at.
  if (status == cudaSuccess && !to_known) {
    CUstream_st& waited = software_cuda::StreamOf(stream);
    waited.WaitUntil(waited.Pushed());
  }
  return call.End(status);
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* pointer) {
  const Call call("cudaIpcGetMemHandle");
  Allocation allocation;
  if (!FindAllocation(pointer, 1, &allocation) || allocation.base != pointer ||
      allocation.origin != Allocation::Origin::kMalloc)
    return call.End(cudaErrorInvalidValue);
  const IpcHandle opened = {getpid(), allocation.descriptor, allocation.bytes};
  *handle = {};
  std::memcpy(handle, &opened, sizeof(opened));
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** pointer, cudaIpcMemHandle_t handle, unsigned) {
  const Call call("cudaIpcOpenMemHandle");
  IpcHandle opened;
  std::memcpy(&opened, &handle, sizeof(opened));
  if (opened.process == getpid()) return call.End(cudaErrorInvalidResourceHandle);
  const std::string path =
      "/proc/" + std::to_string(opened.process) + "/fd/" + std::to_string(opened.descriptor);
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return call.End(cudaErrorInvalidResourceHandle);
  void* const base = mmap(nullptr, opened.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED) {
    close(descriptor);
    return call.End(cudaErrorMapBufferObjectFailed);
  }
  software_cuda::AddAllocation({static_cast<uint8_t*>(base), opened.bytes, cudaMemoryTypeDevice,
                                software_cuda::CurrentDevice(), descriptor,
                                Allocation::Origin::kIpcOpen});
  *pointer = base;
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void* pointer) {
  const Call call("cudaIpcCloseMemHandle");
  return call.End(software_cuda::Free(pointer, Allocation::Origin::kIpcOpen, call.name()));
}

}  // extern "C"
