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
    return expert < in_large ? Divide(expert, small + 1)
                             : large_ranks + Divide(expert - in_large, small);
  }

 private:
  static MOE_EP_HOST_DEVICE int64_t Divide(int64_t expert, int64_t by) {
    return static_cast<uint32_t>(expert) / static_cast<uint32_t>(by);
  }
};

}  // namespace moe_ep
