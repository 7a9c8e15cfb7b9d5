#include "cpu/cpu_memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace moe_ep {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;

struct Mapping {
  void* data;
  uint64_t bytes;
};

void Unmap(void* context) {
  auto* mapping = static_cast<Mapping*>(context);
  munmap(mapping->data, mapping->bytes);
  delete mapping;
}

}  // namespace

moe_ep_memory* AllocateMemory(uint64_t bytes) {
  if (bytes >= kHugePage) {
    // Fresh pages are zero already, and huge ones spare the page faults of streaming kernels.
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return new moe_ep_memory(data, bytes, Unmap, new Mapping{data, bytes});
  }
  void* data = nullptr;
  if (posix_memalign(&data, 128, bytes == 0 ? 128 : bytes) != 0) return nullptr;
  std::memset(data, 0, bytes);
  return new moe_ep_memory(data, bytes, std::free, data);
}

}  // namespace moe_ep
