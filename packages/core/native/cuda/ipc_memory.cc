#include "cuda/ipc_memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/shared_memory.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kGranule = uint64_t{2} << 20;

using ProcessToken = std::array<uint8_t, 16>;

// Tells this process from all others, also from those of other containers.
const ProcessToken& ThisProcess() {
  static const ProcessToken token = [] {
    std::random_device random;
    ProcessToken drawn;
    std::generate(drawn.begin(), drawn.end(), [&] { return static_cast<uint8_t>(random()); });
    return drawn;
  }();
  return token;
}

struct Handle {
  ProcessToken process;
  int32_t device;
  uint32_t reserved;
  uint64_t pointer;
  uint64_t bytes;
  cudaIpcMemHandle_t handle;
};
static_assert(sizeof(Handle) == kIpcHandleBytes);

// A count that stays mapped.
class PinnedCount {
 public:
  explicit PinnedCount(const MappingCount& count) : memory_(count.memory) {
    if (count.offset % sizeof(uint32_t) != 0 ||
        count.offset + sizeof(uint32_t) > count.memory->bytes())
      throw std::invalid_argument("the count of mappings does not lie in its memory");
    auto* const base = static_cast<uint8_t*>(memory_->Pin());
    if (base == nullptr)
      throw std::invalid_argument("the memory of the mappings' count was closed");
    memory_->Retain();
    word_ = reinterpret_cast<uint32_t*>(base + count.offset);
  }
  ~PinnedCount() {
    memory_->Unpin();
    memory_->Release();
  }
  PinnedCount(const PinnedCount&) = delete;
  PinnedCount& operator=(const PinnedCount&) = delete;

  void Add() { __atomic_fetch_add(word_, 1u, __ATOMIC_ACQ_REL); }
  void Remove() { __atomic_fetch_sub(word_, 1u, __ATOMIC_ACQ_REL); }
  bool zero() const { return __atomic_load_n(word_, __ATOMIC_ACQUIRE) == 0; }

 private:
  moe_ep_memory* memory_;
  uint32_t* word_;
};

struct Owned {
  int device;
  void* data;
  uint64_t bytes;
  std::unique_ptr<PinnedCount> count;
};

struct OwnedMemories {
  std::mutex mutex;
  std::set<const void*> known;
  std::vector<std::unique_ptr<Owned>> closed;  // while others still map them
};
OwnedMemories& Memories() {
  static auto* const memories = new OwnedMemories;
  return *memories;
}

void CloseOwned(void* context) {
  OwnedMemories& memories = Memories();
  {
    std::lock_guard lock(memories.mutex);
    auto* const owned = static_cast<Owned*>(context);
    memories.known.erase(owned->data);
    memories.closed.emplace_back(owned);
  }
  FreeUnmappedIpc();
}

void Free(const Owned& owned) {
  Device::Get(owned.device).MakeCurrent();
  cudaFree(owned.data);
  cudaGetLastError();
}

struct Opened {
  int device;
  void* foreign;  // mapped for this; null for memory of this process
  std::unique_ptr<PinnedCount> count;
};

void Close(std::unique_ptr<Opened> opened) {
  if (opened->foreign != nullptr) {
    Device::Get(opened->device).MakeCurrent();
    cudaIpcCloseMemHandle(opened->foreign);
    cudaGetLastError();
  }
  opened->count->Remove();
  FreeUnmappedIpc();
}

void CloseOpened(void* context) {
  auto* const opened = static_cast<Opened*>(context);
  Device::Get(opened->device).RetireWhenIdle([opened] { Close(std::unique_ptr<Opened>(opened)); });
}

}  // namespace

moe_ep_memory* AllocateIpc(int device, uint64_t bytes, const MappingCount& count) {
  FreeUnmappedIpc();
  Device::Get(device).Poll();
  auto owned = std::make_unique<Owned>();
  owned->device = device;
  owned->count = std::make_unique<PinnedCount>(count);
  owned->bytes = std::max<uint64_t>(1, (bytes + kGranule - 1) / kGranule) * kGranule;
  Device& owner = Device::Get(device);
  owner.MakeCurrent();
  Check(cudaMalloc(&owned->data, owned->bytes), "cudaMalloc");
  try {
    Check(cudaMemsetAsync(owned->data, 0, owned->bytes, owner.auxiliary()), "cudaMemsetAsync");
    Check(cudaStreamSynchronize(owner.auxiliary()), "cudaStreamSynchronize");
  } catch (...) {
    cudaFree(owned->data);
    throw;
  }
  {
    std::lock_guard lock(Memories().mutex);
    Memories().known.insert(owned->data);
  }
  void* const data = owned->data;
  return new moe_ep_memory(data, bytes, CloseOwned, owned.release(), device);
}

IpcHandleBytes IpcHandleOf(const moe_ep_memory& memory) {
  {
    std::lock_guard lock(Memories().mutex);
    if (!Memories().known.contains(memory.data())) throw std::invalid_argument("not ipc memory");
  }
  Device::Get(memory.device()).MakeCurrent();
  Handle handle = {};
  handle.process = ThisProcess();
  handle.device = memory.device();
  handle.pointer = reinterpret_cast<uint64_t>(memory.data());
  handle.bytes = memory.bytes();
  Check(cudaIpcGetMemHandle(&handle.handle, memory.data()), "cudaIpcGetMemHandle");
  IpcHandleBytes bytes;
  std::memcpy(bytes.data(), &handle, sizeof(handle));
  return bytes;
}

moe_ep_memory* OpenIpc(int device, const IpcHandleBytes& given, uint64_t bytes,
                       const MappingCount& count) {
  Handle handle;
  std::memcpy(&handle, given.data(), sizeof(handle));
  if (handle.bytes < bytes) throw std::invalid_argument("the memory is smaller than that");
  auto opened = std::make_unique<Opened>();
  opened->device = device;
  opened->count = std::make_unique<PinnedCount>(count);
  Device::Get(device).MakeCurrent();
  auto* data = reinterpret_cast<void*>(handle.pointer);
  if (handle.process == ThisProcess()) {
    // A process cannot open its own handles.
    if (handle.device != device) EnablePeerAccess(device, handle.device);
    // Under the lock that the owner is closed under: it is either known, and then waits for this
    // mapping, or gone.
    std::lock_guard lock(Memories().mutex);
    if (!Memories().known.contains(data)) throw std::invalid_argument("the memory was closed");
    opened->count->Add();
  } else {
    opened->count->Add();
    const cudaError_t status =
        cudaIpcOpenMemHandle(&data, handle.handle, cudaIpcMemLazyEnablePeerAccess);
    if (status != cudaSuccess) {
      opened->count->Remove();
      Check(status, "cudaIpcOpenMemHandle");
    }
    opened->foreign = data;
  }
  return new moe_ep_memory(data, bytes, CloseOpened, opened.release(), device);
}

void FreeUnmappedIpc() {
  std::vector<std::unique_ptr<Owned>> unmapped;
  {
    OwnedMemories& memories = Memories();
    std::lock_guard lock(memories.mutex);
    for (std::unique_ptr<Owned>& owned : memories.closed) {
      if (owned->count->zero()) unmapped.push_back(std::move(owned));
    }
    std::erase(memories.closed, nullptr);
  }
  for (std::unique_ptr<Owned>& owned : unmapped) {
    Device& device = Device::Get(owned->device);
    device.RetireWhenIdle([idle = std::shared_ptr<Owned>(std::move(owned))] { Free(*idle); });
  }
}

}  // namespace moe_ep::cuda
