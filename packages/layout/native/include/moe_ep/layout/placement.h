// Linear placement of experts: rank r owns a contiguous block, and the first (experts mod ranks)
// ranks own one more.
#pragma once

#include <cstdint>

#include "moe_ep/host_device.h"

namespace moe_ep {

struct ExpertPlacement {
  int64_t experts = 0;
  int64_t ranks = 0;
  int64_t small = 0;        // experts of most ranks
  int64_t large_ranks = 0;  // ranks that have one more

  ExpertPlacement() = default;
  // What is asked again and again takes no more than one short division.
  MOE_EP_HOST_DEVICE ExpertPlacement(int64_t all_experts, int64_t all_ranks)
      : experts(all_experts),
        ranks(all_ranks),
        small(all_experts / all_ranks),
        large_ranks(all_experts % all_ranks) {}

  MOE_EP_HOST_DEVICE int64_t BeginOf(int64_t rank) const {
    return rank * small + (rank < large_ranks ? rank : large_ranks);
  }
  MOE_EP_HOST_DEVICE int64_t CountOf(int64_t rank) const {
    return small + (rank < large_ranks ? 1 : 0);
  }
  // Of an expert below 2^32.
  MOE_EP_HOST_DEVICE int64_t RankOf(int64_t expert) const {
    const int64_t in_large = large_ranks * (small + 1);
    const bool large = expert < in_large;
    const auto among = static_cast<uint32_t>(large ? expert : expert - in_large);
    const auto of_rank = static_cast<uint32_t>(large ? small + 1 : small);
    return (large ? 0 : large_ranks) + among / of_rank;
  }
};

}  // namespace moe_ep
