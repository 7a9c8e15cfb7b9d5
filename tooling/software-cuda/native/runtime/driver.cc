// The driver's functions for memory that is mapped by itself and passed on as file descriptors.
#include <cuda.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>

#include "software_cuda.h"

using software_cuda::Call;

namespace {

constexpr size_t kGranule = size_t{2} << 20;

void* PointerOf(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult DeviceGet(CUdevice* handle, int ordinal) {
  *handle = ordinal;
  return CUDA_SUCCESS;
}

CUresult DeviceGetAttribute(int* value, CUdevice_attribute, CUdevice) {
  *value = 1;
  return CUDA_SUCCESS;
}

CUresult Granularity(size_t* granule, const CUmemAllocationProp*,
                     CUmemAllocationGranularity_flags) {
  *granule = kGranule;
  return CUDA_SUCCESS;
}

// What a handle stands for. Numbers are not used again.
struct Handle {
  int descriptor;
  int device;  // that made it; -1: of another process
  uint64_t bytes;
};
struct Handles {
  std::mutex mutex;
  std::map<CUmemGenericAllocationHandle, Handle> live;
  CUmemGenericAllocationHandle next = 1;
};
Handles& TheHandles() {
  static auto* const handles = new Handles;
  return *handles;
}

CUmemGenericAllocationHandle NewHandle(const Handle& handle) {
  Handles& handles = TheHandles();
  std::lock_guard lock(handles.mutex);
  handles.live[handles.next] = handle;
  return handles.next++;
}

Handle HandleOf(CUmemGenericAllocationHandle number, bool release) {
  Handles& handles = TheHandles();
  std::lock_guard lock(handles.mutex);
  const auto found = handles.live.find(number);
  if (found == handles.live.end()) software_cuda::Misuse("a handle of memory that was released");
  const Handle handle = found->second;
  if (release) handles.live.erase(found);
  return handle;
}

CUresult MemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                   const CUmemAllocationProp* properties, unsigned long long) {
  if (bytes % kGranule != 0) return CUDA_ERROR_INVALID_VALUE;
  const int device = properties->location.id;
  if (software_cuda::AllocatedBytes(device) + bytes > software_cuda::kDeviceBytes)
    return CUDA_ERROR_OUT_OF_MEMORY;
  const int descriptor = software_cuda::NewBytes(bytes);
  if (descriptor < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = NewHandle({descriptor, device, bytes});
  software_cuda::CountMappedBytes(device, static_cast<int64_t>(bytes));
  return CUDA_SUCCESS;
}

CUresult MemRelease(CUmemGenericAllocationHandle number) {
  const Handle handle = HandleOf(number, /*release=*/true);
  close(handle.descriptor);
  if (handle.device >= 0)
    software_cuda::CountMappedBytes(handle.device, -static_cast<int64_t>(handle.bytes));
  return CUDA_SUCCESS;
}

CUresult AddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr,
                        unsigned long long) {
  void* const base =
      mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = reinterpret_cast<CUdeviceptr>(base);
  return CUDA_SUCCESS;
}

CUresult AddressFree(CUdeviceptr address, size_t bytes) {
  munmap(PointerOf(address), bytes);
  return CUDA_SUCCESS;
}

CUresult MemMap(CUdeviceptr address, size_t bytes, size_t, CUmemGenericAllocationHandle handle,
                unsigned long long) {
  const int descriptor = HandleOf(handle, /*release=*/false).descriptor;
  struct stat file;
  if (fstat(descriptor, &file) != 0 || static_cast<size_t>(file.st_size) < bytes)
    return CUDA_ERROR_INVALID_VALUE;
  void* const mapped =
      mmap(PointerOf(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, descriptor, 0);
  return mapped == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult MemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access, size_t) {
  mprotect(PointerOf(address), bytes, PROT_READ | PROT_WRITE);
  software_cuda::AddAllocation({static_cast<uint8_t*>(PointerOf(address)), bytes,
                                cudaMemoryTypeDevice, access->location.id, -1,
                                software_cuda::Allocation::Origin::kMap});
  return CUDA_SUCCESS;
}

// Waits for all that runs, as the real one does.
CUresult MemUnmap(CUdeviceptr address, size_t bytes) {
  software_cuda::WaitForDevices();
  software_cuda::TakeAllocation(PointerOf(address), software_cuda::Allocation::Origin::kMap,
                                "cuMemUnmap");
  mmap(PointerOf(address), bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return CUDA_SUCCESS;
}

CUresult Export(void* shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType,
                unsigned long long) {
  const int descriptor = fcntl(HandleOf(handle, /*release=*/false).descriptor, F_DUPFD_CLOEXEC, 0);
  std::memcpy(shareable, &descriptor, sizeof(descriptor));
  return descriptor < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult Import(CUmemGenericAllocationHandle* handle, void* shareable, CUmemAllocationHandleType) {
  const auto given = static_cast<int>(reinterpret_cast<uintptr_t>(shareable));
  const int descriptor = fcntl(given, F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) return CUDA_ERROR_INVALID_VALUE;
  *handle = NewHandle({descriptor, -1, 0});
  return CUDA_SUCCESS;
}

struct Entry {
  const char* name;
  void* function;
};

template <typename Declared>
Entry EntryOf(const char* name, Declared* function) {
  return {name, reinterpret_cast<void*>(function)};
}

}  // namespace

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                        unsigned long long,
                                                        cudaDriverEntryPointQueryResult* result) {
  const Call call("cudaGetDriverEntryPointByVersion");
  static const Entry entries[] = {
      EntryOf<decltype(cuDeviceGet)>("cuDeviceGet", DeviceGet),
      EntryOf<decltype(cuDeviceGetAttribute)>("cuDeviceGetAttribute", DeviceGetAttribute),
      EntryOf<decltype(cuMemCreate)>("cuMemCreate", MemCreate),
      EntryOf<decltype(cuMemRelease)>("cuMemRelease", MemRelease),
      EntryOf<decltype(cuMemAddressReserve)>("cuMemAddressReserve", AddressReserve),
      EntryOf<decltype(cuMemAddressFree)>("cuMemAddressFree", AddressFree),
      EntryOf<decltype(cuMemMap)>("cuMemMap", MemMap),
      EntryOf<decltype(cuMemUnmap)>("cuMemUnmap", MemUnmap),
      EntryOf<decltype(cuMemSetAccess)>("cuMemSetAccess", MemSetAccess),
      EntryOf<decltype(cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity",
                                                       Granularity),
      EntryOf<decltype(cuMemExportToShareableHandle)>("cuMemExportToShareableHandle", Export),
      EntryOf<decltype(cuMemImportFromShareableHandle)>("cuMemImportFromShareableHandle", Import),
  };
  *function = nullptr;
  *result = cudaDriverEntryPointSymbolNotFound;
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, name) != 0) continue;
    *function = entry.function;
    *result = cudaDriverEntryPointSuccess;
  }
  return cudaSuccess;
}
