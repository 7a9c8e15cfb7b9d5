// What a slot is counted under.
#pragma once

#include <cstdint>

#include "moe_ep/deepgemm_permute/local_experts.h"
#include "moe_ep/host_device.h"

namespace moe_ep {

// Local experts come first; where `foreign` slots are asked for, behind them foreign experts by
// their global id, and at the very end "no expert".
struct SlotGroups {
  LocalExperts experts;
  bool foreign;

  MOE_EP_HOST_DEVICE int64_t size() const {
    if (!foreign) return experts.num_local;
    return experts.num_local + (experts.map == nullptr ? 0 : experts.num_global) + 1;
  }

  // The group of slots with this id, kNoExpert for slots that are not counted, or kInvalidExpert.
  MOE_EP_HOST_DEVICE int64_t OfId(int64_t id) const {
    const int64_t expert = experts.OfId(id);
    if (expert != kNoExpert || !foreign) return expert;
    return id == kNoExpert ? size() - 1 : experts.num_local + id;
  }

  MOE_EP_HOST_DEVICE int64_t operator[](int64_t slot) const { return OfId(experts.Id(slot)); }
};

}  // namespace moe_ep
