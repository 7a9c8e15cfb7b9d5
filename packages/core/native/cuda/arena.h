// Memory that is asked of a device in large segments and handed out in parts, so that operations
// never wait for the driver. What is given back can be handed out again at once: callers see to it
// that no work uses it any more.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace moe_ep::cuda {

class Arena {
 public:
  // `grow` gives a segment or null, `shrink` takes it back.
  Arena(std::function<void*(uint64_t bytes)> grow, std::function<void(void*)> shrink,
        uint64_t segment_bytes)
      : grow_(std::move(grow)), shrink_(std::move(shrink)), segment_bytes_(segment_bytes) {}

  // Aligned to 512 bytes; null when there is no more. The smallest part that fits is taken.
  void* Allocate(uint64_t bytes);
  void Free(void* memory);
  // Gives segments back that are not used at all.
  void Trim();

  struct Use {
    uint64_t reserved;  // bytes of all segments
    uint64_t in_use;
  };
  Use use();

 private:
  struct Part {
    uint64_t bytes;
    bool free;
    uint8_t* segment;
  };
  using Parts = std::map<uint8_t*, Part>;

  void* TakeFree(uint64_t bytes);
  void MarkFree(Parts::iterator part);

  std::mutex mutex_;
  const std::function<void*(uint64_t)> grow_;
  const std::function<void(void*)> shrink_;
  const uint64_t segment_bytes_;
  Parts parts_;
  std::set<std::pair<uint64_t, uint8_t*>> free_;  // by size, then by address
  Use use_ = {0, 0};
};

}  // namespace moe_ep::cuda
