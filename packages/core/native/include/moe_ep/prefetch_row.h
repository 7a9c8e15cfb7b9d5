// Rows that will be read soon.
#pragma once

#include <cstdint>

namespace moe_ep {

// Starts to bring `bytes` from `address` into the second-level cache: rows are short and far apart,
// so the machine alone finds out too late what comes next.
inline void PrefetchRow(const void* address, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t offset = 0; offset < bytes; offset += kLine) {
    __builtin_prefetch(static_cast<const uint8_t*>(address) + offset, 0, 2);
  }
}

}  // namespace moe_ep
