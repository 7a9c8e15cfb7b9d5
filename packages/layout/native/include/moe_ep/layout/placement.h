// Linear placement of experts: rank r owns a contiguous block, and the first (experts mod ranks)
// ranks own one more.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moe_ep {

struct ExpertPlacement {
  int64_t experts;
  int64_t ranks;

  int64_t BeginOf(int64_t rank) const {
    return rank * (experts / ranks) + std::min(rank, experts % ranks);
  }
  int64_t CountOf(int64_t rank) const { return experts / ranks + (rank < experts % ranks ? 1 : 0); }
  int64_t RankOf(int64_t expert) const {
    const int64_t small = experts / ranks;
    const int64_t large_ranks = experts % ranks;
    const int64_t in_large = large_ranks * (small + 1);
    return expert < in_large ? expert / (small + 1) : large_ranks + (expert - in_large) / small;
  }
};

}  // namespace moe_ep
