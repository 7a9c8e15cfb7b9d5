// Small synchronous transfers between the host and a device's memory, past the streams of others.
#pragma once

#include <cstdint>

namespace moe_ep::cuda {

// A word that kernels, of peers too, may write meanwhile. Throws.
uint64_t ReadDeviceWord(int device, const void* from);
// Into memory that nothing uses yet. Throws.
void WriteDeviceMemory(int device, void* to, const void* from, uint64_t bytes);

}  // namespace moe_ep::cuda
