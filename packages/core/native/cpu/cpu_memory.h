// Memory of the cpu.
#pragma once

#include "runtime/memory.h"

namespace moe_ep {

// Zeroed memory of its own pages when large, aligned to 128 bytes at least. Null when there is none
// to be had.
moe_ep_memory* AllocateMemory(uint64_t bytes);

}  // namespace moe_ep
