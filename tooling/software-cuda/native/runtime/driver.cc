// The driver's functions for memory that is mapped by itself and passed on as file descriptors.
#include <cuda.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

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

// A handle of memory is its file descriptor, and one more so that none is zero.
int DescriptorOf(CUmemGenericAllocationHandle handle) { return static_cast<int>(handle) - 1; }

CUresult MemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*,
                   unsigned long long) {
  if (bytes % kGranule != 0) return CUDA_ERROR_INVALID_VALUE;
  if (bytes > software_cuda::kDeviceBytes) return CUDA_ERROR_OUT_OF_MEMORY;
  const int descriptor = software_cuda::NewBytes(bytes);
  if (descriptor < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  *handle = static_cast<CUmemGenericAllocationHandle>(descriptor) + 1;
  return CUDA_SUCCESS;
}

CUresult MemRelease(CUmemGenericAllocationHandle handle) {
  if (close(DescriptorOf(handle)) != 0) software_cuda::Misuse("memory is released twice");
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
  const int descriptor = DescriptorOf(handle);
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
                                cudaMemoryTypeDevice, access->location.id, -1});
  return CUDA_SUCCESS;
}

// Waits for all that runs, as the real one does.
CUresult MemUnmap(CUdeviceptr address, size_t bytes) {
  software_cuda::WaitForDevices();
  software_cuda::TakeAllocation(PointerOf(address), "cuMemUnmap");
  mmap(PointerOf(address), bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return CUDA_SUCCESS;
}

CUresult Export(void* shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType,
                unsigned long long) {
  const int descriptor = fcntl(DescriptorOf(handle), F_DUPFD_CLOEXEC, 0);
  std::memcpy(shareable, &descriptor, sizeof(descriptor));
  return descriptor < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult Import(CUmemGenericAllocationHandle* handle, void* shareable, CUmemAllocationHandleType) {
  const auto given = static_cast<int>(reinterpret_cast<uintptr_t>(shareable));
  const int descriptor = fcntl(given, F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) return CUDA_ERROR_INVALID_VALUE;
  *handle = static_cast<CUmemGenericAllocationHandle>(descriptor) + 1;
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
