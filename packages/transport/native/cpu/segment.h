// Shared memory segments behind file descriptors.
#pragma once

#include <cstdint>
#include <string>

namespace moe_ep::cpu {

struct Segment {
  int descriptor = -1;
  uint8_t* base = nullptr;
  uint64_t bytes = 0;
};

// A memfd of `bytes`, all of it allocated now, so that no later write can fail. Memfds do not count
// against /dev/shm. On failure returns an errno and says in `what` which step it was.
int CreateSegment(uint64_t bytes, Segment* segment, std::string* what);

// Maps a descriptor that another rank sent; refuses one of another size.
int MapSegment(int descriptor, uint64_t bytes, Segment* segment, std::string* what);

}  // namespace moe_ep::cpu
