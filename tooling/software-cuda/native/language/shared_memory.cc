// Shared memory of blocks, and its addresses.
#include <cstdint>

#include "grid_state.h"
#include "software_cuda.h"

namespace software_cuda {
namespace {

constexpr uint32_t kFirstAddress = 1024;  // of shared memory, as device code sees it

}  // namespace

void* DynamicShared() { return Self().block->shared; }

void* StaticShared(const void* key, uint64_t bytes) {
  Block& block = *Self().block;
  Grid& grid = *block.grid;
  for (const auto& [known, offset] : grid.statics) {
    if (known == key) return block.shared + offset;
  }
  const uint64_t offset = StaticsOf(grid) + grid.static_bytes;
  grid.static_bytes += RoundedUp(bytes);
  if (grid.static_bytes > kStaticBytes) Misuse("a kernel declares too much shared memory");
  grid.statics.emplace_back(key, offset);
  return block.shared + offset;
}

uint32_t AddressOfShared(const void* pointer) {
  const Block& block = *Self().block;
  if (!block.HasShared(pointer, 0)) Misuse("an address is not one of the block's shared memory");
  return kFirstAddress + static_cast<uint32_t>(static_cast<const uint8_t*>(pointer) - block.shared);
}

void* PointerToShared(uint32_t address) { return Self().block->shared + (address - kFirstAddress); }

void* SharedOf(const void* pointer, unsigned number) {
  const Block& block = *Self().block;
  for (const std::unique_ptr<Block>& other : block.grid->resident) {
    if (other->index.x != number || other->alive == 0) continue;
    if (other.get() != &block) other->used_until = block.grid->everywhere.generation + 1;
    return other->shared + (static_cast<const uint8_t*>(pointer) - block.shared);
  }
  Misuse("shared memory is read of a block that has ended");
}

}  // namespace software_cuda
