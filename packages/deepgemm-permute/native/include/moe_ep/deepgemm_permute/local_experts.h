// The local expert of each top-k slot: ids of either integer width, seen through an optional expert
// map.
#pragma once

#include <cstdint>
#include <limits>

#include "moe_ep/host_device.h"

namespace moe_ep {

inline constexpr int64_t kNoExpert = -1;
inline constexpr int64_t kInvalidExpert = -2;

struct LocalExperts {
  const void* ids;
  bool wide;  // i64, else i32
  const int32_t*
      map;  // global to local id, kNoExpert for foreign experts; null: ids are local already
  int64_t num_global;  // entries of the map; without one, the local experts
  int64_t num_local;

  MOE_EP_HOST_DEVICE int64_t Id(int64_t slot) const {
    return wide ? static_cast<const int64_t*>(ids)[slot] : static_cast<const int32_t*>(ids)[slot];
  }

  // A local expert, kNoExpert, or kInvalidExpert when the id or its entry in the map is out of
  // range.
  MOE_EP_HOST_DEVICE int64_t OfId(int64_t id) const {
    if (id == kNoExpert) return kNoExpert;
    if (id < 0 || id >= num_global) return kInvalidExpert;
    if (map == nullptr) return id;
    const int64_t local = map[id];
    return local >= kNoExpert && local < num_local ? local : kInvalidExpert;
  }

  MOE_EP_HOST_DEVICE int64_t operator[](int64_t slot) const { return OfId(Id(slot)); }
};

// For operations that only ask whether a slot is local.
inline constexpr int64_t kAnyNumberOfExperts = std::numeric_limits<int64_t>::max();

}  // namespace moe_ep
