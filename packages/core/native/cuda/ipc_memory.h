// Device memory shared by CUDA's older handles, for drivers that cannot pass memory on as file
// descriptors. Here a mapping does not outlive the memory, so its mappings are counted in memory
// that the processes share, and the owner frees it when they are gone.
#pragma once

#include <array>
#include <cstdint>

#include "runtime/memory.h"

namespace moe_ep::cuda {

// A 32-bit word of host memory that all who map the memory see; 0 at first.
struct MappingCount {
  moe_ep_memory* memory;
  uint64_t offset;
};

inline constexpr uint64_t kIpcHandleBytes = 104;
using IpcHandleBytes = std::array<uint8_t, kIpcHandleBytes>;

// Zeroed, rounded up to 2 MiB so that a handle shows nothing of other memory. Throws; also
// std::invalid_argument when the count was closed.
moe_ep_memory* AllocateIpc(int device, uint64_t bytes, const MappingCount& count);
// Throws std::invalid_argument for memory of other kinds.
IpcHandleBytes IpcHandleOf(const moe_ep_memory& memory);
// Maps what a handle stands for; memory of this process is used where it lies. `count` is the
// owner's. Throws; std::invalid_argument for bytes that are no such handle or for less memory.
moe_ep_memory* OpenIpc(int device, const IpcHandleBytes& handle, uint64_t bytes,
                       const MappingCount& count);
// Frees what was closed while others still mapped it and is not mapped any more. Closing and
// allocating such memory do so, too.
void FreeUnmappedIpc();

}  // namespace moe_ep::cuda
