#include "cuda/arena.h"

#include <algorithm>
#include <iterator>

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kGranule = 512;
constexpr uint64_t kSegmentGranule = uint64_t{2} << 20;

uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void* Arena::Allocate(uint64_t bytes) {
  const uint64_t rounded = RoundUp(std::max<uint64_t>(bytes, 1), kGranule);
  std::lock_guard lock(mutex_);
  if (void* memory = TakeFree(rounded)) return memory;
  const uint64_t segment_bytes = RoundUp(std::max(rounded, segment_bytes_), kSegmentGranule);
  auto* segment = static_cast<uint8_t*>(grow_(segment_bytes));
  if (segment == nullptr) return nullptr;
  use_.reserved += segment_bytes;
  parts_[segment] = {segment_bytes, true, segment};
  free_.insert({segment_bytes, segment});
  return TakeFree(rounded);
}

void* Arena::TakeFree(uint64_t bytes) {
  const auto found = free_.lower_bound({bytes, nullptr});
  if (found == free_.end()) return nullptr;
  const auto part = parts_.find(found->second);
  free_.erase(found);
  part->second.free = false;
  const uint64_t rest = part->second.bytes - bytes;
  if (rest > 0) {
    part->second.bytes = bytes;
    parts_[part->first + bytes] = {rest, true, part->second.segment};
    free_.insert({rest, part->first + bytes});
  }
  use_.in_use += bytes;
  return part->first;
}

void Arena::Free(void* memory) {
  std::lock_guard lock(mutex_);
  const auto part = parts_.find(static_cast<uint8_t*>(memory));
  use_.in_use -= part->second.bytes;
  MarkFree(part);
}

// Joined with free neighbours of its segment.
void Arena::MarkFree(Parts::iterator part) {
  part->second.free = true;
  const auto next = std::next(part);
  if (next != parts_.end() && next->second.free && next->second.segment == part->second.segment) {
    free_.erase({next->second.bytes, next->first});
    part->second.bytes += next->second.bytes;
    parts_.erase(next);
  }
  if (part != parts_.begin()) {
    const auto previous = std::prev(part);
    if (previous->second.free && previous->second.segment == part->second.segment) {
      free_.erase({previous->second.bytes, previous->first});
      previous->second.bytes += part->second.bytes;
      parts_.erase(part);
      free_.insert({previous->second.bytes, previous->first});
      return;
    }
  }
  free_.insert({part->second.bytes, part->first});
}

void Arena::Trim() {
  std::lock_guard lock(mutex_);
  for (auto part = parts_.begin(); part != parts_.end();) {
    const auto next = std::next(part);
    const bool whole = part->first == part->second.segment &&
                       (next == parts_.end() || next->second.segment != part->second.segment);
    if (!part->second.free || !whole) {
      part = next;
      continue;
    }
    free_.erase({part->second.bytes, part->first});
    use_.reserved -= part->second.bytes;
    shrink_(part->first);
    part = parts_.erase(part);
  }
}

Arena::Use Arena::use() {
  std::lock_guard lock(mutex_);
  return use_;
}

}  // namespace moe_ep::cuda
