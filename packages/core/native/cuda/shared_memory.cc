#include "cuda/shared_memory.h"

#include <cuda.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "cuda/device.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {
namespace {

// The driver's functions, found through the runtime: linking libcuda would ask for a driver at
// load.
template <typename Function>
Function* DriverFunction(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  Check(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result), name);
  if (function == nullptr) throw std::runtime_error(std::string("the driver has no ") + name);
  return reinterpret_cast<Function*>(function);
}

struct Driver {
  decltype(&cuDeviceGet) get_device = DriverFunction<decltype(cuDeviceGet)>("cuDeviceGet");
  decltype(&cuDeviceGetAttribute) get_attribute =
      DriverFunction<decltype(cuDeviceGetAttribute)>("cuDeviceGetAttribute");
  decltype(&cuMemCreate) create = DriverFunction<decltype(cuMemCreate)>("cuMemCreate");
  decltype(&cuMemRelease) release = DriverFunction<decltype(cuMemRelease)>("cuMemRelease");
  decltype(&cuMemAddressReserve) reserve =
      DriverFunction<decltype(cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(&cuMemAddressFree) unreserve =
      DriverFunction<decltype(cuMemAddressFree)>("cuMemAddressFree");
  decltype(&cuMemMap) map = DriverFunction<decltype(cuMemMap)>("cuMemMap");
  decltype(&cuMemUnmap) unmap = DriverFunction<decltype(cuMemUnmap)>("cuMemUnmap");
  decltype(&cuMemSetAccess) set_access = DriverFunction<decltype(cuMemSetAccess)>("cuMemSetAccess");
  decltype(&cuMemGetAllocationGranularity) granularity =
      DriverFunction<decltype(cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity");
  decltype(&cuMemExportToShareableHandle) export_handle =
      DriverFunction<decltype(cuMemExportToShareableHandle)>("cuMemExportToShareableHandle");
  decltype(&cuMemImportFromShareableHandle) import_handle =
      DriverFunction<decltype(cuMemImportFromShareableHandle)>("cuMemImportFromShareableHandle");
};

const Driver& TheDriver() {
  static const Driver driver;
  return driver;
}

void Require(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  if (result == CUDA_ERROR_OUT_OF_MEMORY) throw std::bad_alloc();
  throw std::runtime_error(std::string(what) + ": CUresult " + std::to_string(result));
}

CUmemAllocationProp PropertiesFor(int device) {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
  properties.allocFlags.gpuDirectRDMACapable = 1;
  return properties;
}

uint64_t RoundToMapping(int device, uint64_t bytes) {
  const CUmemAllocationProp properties = PropertiesFor(device);
  size_t granule = 0;
  Require(TheDriver().granularity(&granule, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
          "cuMemGetAllocationGranularity");
  return (bytes + granule - 1) / granule * granule + (bytes == 0 ? granule : 0);
}

struct Mapping {
  int device;
  CUmemGenericAllocationHandle handle;
  CUdeviceptr at;
  uint64_t bytes;
};

// What memory stands for which handle, for exports.
std::mutex handles_mutex;
std::map<CUdeviceptr, CUmemGenericAllocationHandle>& Handles() {
  static auto* const handles = new std::map<CUdeviceptr, CUmemGenericAllocationHandle>;
  return *handles;
}

void Unmap(void* context) {
  auto* mapping = static_cast<Mapping*>(context);
  {
    std::lock_guard lock(handles_mutex);
    Handles().erase(mapping->at);
  }
  TheDriver().unmap(mapping->at, mapping->bytes);
  TheDriver().unreserve(mapping->at, mapping->bytes);
  TheDriver().release(mapping->handle);
  delete mapping;
}

void UnmapWhenIdle(void* context) {
  const int device = static_cast<Mapping*>(context)->device;
  Device::Get(device).RetireWhenIdle([context] { Unmap(context); });
}

// Takes over the handle, also when it throws.
moe_ep_memory* Map(int device, CUmemGenericAllocationHandle handle, uint64_t mapped,
                   uint64_t bytes) {
  const Driver& driver = TheDriver();
  CUdeviceptr at = 0;
  try {
    Require(driver.reserve(&at, mapped, 0, 0, 0), "cuMemAddressReserve");
    Require(driver.map(at, mapped, 0, handle, 0), "cuMemMap");
  } catch (...) {
    if (at != 0) driver.unreserve(at, mapped);
    driver.release(handle);
    throw;
  }
  auto* mapping = new Mapping{device, handle, at, mapped};
  CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, {device}},
                            CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  const CUresult result = driver.set_access(at, mapped, &access, 1);
  if (result != CUDA_SUCCESS) {
    Unmap(mapping);
    Require(result, "cuMemSetAccess");
  }
  {
    std::lock_guard lock(handles_mutex);
    Handles()[at] = handle;
  }
  return new moe_ep_memory(reinterpret_cast<void*>(at), bytes, UnmapWhenIdle, mapping, device);
}

}  // namespace

bool CanExport(int device) {
  CUdevice handle = 0;
  int can = 0;
  Require(TheDriver().get_device(&handle, device), "cuDeviceGet");
  Require(TheDriver().get_attribute(
              &can, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, handle),
          "cuDeviceGetAttribute");
  return can != 0;
}

moe_ep_memory* AllocateExportable(int device, uint64_t bytes) {
  Device& owner = Device::Get(device);
  owner.Poll();  // what was unmapped makes room
  const uint64_t mapped = RoundToMapping(device, bytes);
  const CUmemAllocationProp properties = PropertiesFor(device);
  CUmemGenericAllocationHandle handle = 0;
  Require(TheDriver().create(&handle, mapped, &properties, 0), "cuMemCreate");
  moe_ep_memory* memory = Map(device, handle, mapped, bytes);
  Check(cudaMemsetAsync(memory->data(), 0, mapped, owner.auxiliary()), "cudaMemsetAsync");
  Check(cudaStreamSynchronize(owner.auxiliary()), "cudaStreamSynchronize");
  return memory;
}

int ExportDescriptor(const moe_ep_memory& memory) {
  CUmemGenericAllocationHandle handle = 0;
  {
    std::lock_guard lock(handles_mutex);
    const auto known = Handles().find(reinterpret_cast<CUdeviceptr>(memory.data()));
    if (known == Handles().end()) throw std::invalid_argument("not exportable");
    handle = known->second;
  }
  int descriptor = -1;
  Require(
      TheDriver().export_handle(&descriptor, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
      "cuMemExportToShareableHandle");
  return descriptor;
}

moe_ep_memory* ImportDescriptor(int device, int descriptor, uint64_t bytes) {
  Device::Get(device).MakeCurrent();
  CUmemGenericAllocationHandle handle = 0;
  auto* const shared = reinterpret_cast<void*>(static_cast<uintptr_t>(descriptor));
  Require(TheDriver().import_handle(&handle, shared, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
          "cuMemImportFromShareableHandle");
  return Map(device, handle, RoundToMapping(device, bytes), bytes);
}

bool CanAccessPeer(int device, int peer) {
  int can = 0;
  Check(cudaDeviceCanAccessPeer(&can, device, peer), "cudaDeviceCanAccessPeer");
  return can != 0;
}

void EnablePeerAccess(int device, int peer) {
  Device::Get(device).MakeCurrent();
  const cudaError_t status = cudaDeviceEnablePeerAccess(peer, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    cudaGetLastError();
    return;
  }
  Check(status, "cudaDeviceEnablePeerAccess");
}

}  // namespace moe_ep::cuda
