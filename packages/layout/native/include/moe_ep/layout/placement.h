// Linear placement of experts: rank r owns a contiguous block, and the first (experts mod ranks)
// ranks own one more.
#pragma once

#include <cstdint>

#include "moe_ep/host_device.h"

namespace moe_ep {

struct ExpertPlacement {
  int64_t experts;
  int64_t ranks;

  MOE_EP_HOST_DEVICE int64_t BeginOf(int64_t rank) const {
    return rank * (experts / ranks) + (rank < experts % ranks ? rank : experts % ranks);
  }
  MOE_EP_HOST_DEVICE int64_t CountOf(int64_t rank) const {
    return experts / ranks + (rank < experts % ranks ? 1 : 0);
  }
  MOE_EP_HOST_DEVICE int64_t RankOf(int64_t expert) const {
    const int64_t small = experts / ranks;
    const int64_t large_ranks = experts % ranks;
    const int64_t in_large = large_ranks * (small + 1);
    return expert < in_large ? expert / (small + 1) : large_ranks + (expert - in_large) / small;
  }
};

}  // namespace moe_ep
