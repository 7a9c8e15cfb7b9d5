// Device memory that other processes can map: physical memory with a file descriptor of its own. A
// mapping outlives the process that made the memory.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/memory.h"

namespace moe_ep::cuda {

// Whether the driver can pass memory of the device on as file descriptors. Throws.
bool CanExport(int device);
// Both sizes are rounded up to what the device maps (2 MiB). Zeroed. Throws.
moe_ep_memory* AllocateExportable(int device, uint64_t bytes);
// A descriptor that the caller closes. Throws std::invalid_argument when the memory is not
// exportable.
int ExportDescriptor(const moe_ep_memory& memory);
// Maps what a descriptor stands for, `bytes` as they were asked for; the descriptor can be closed
// afterwards. Throws.
moe_ep_memory* ImportDescriptor(int device, int descriptor, uint64_t bytes);

bool CanAccessPeer(int device, int peer);
// Lets kernels of `device` use ordinary memory of `peer`. Throws.
void EnablePeerAccess(int device, int peer);

}  // namespace moe_ep::cuda
