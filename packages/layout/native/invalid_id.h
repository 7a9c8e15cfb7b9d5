// How an id out of range is told, in the same words on every device.
#pragma once

#include <cinttypes>
#include <cstdio>

#include "moe_ep/abi.h"

namespace moe_ep {

// values: number of experts, the id, its token, its slot.
inline void DescribeInvalidId(const int64_t* values, moe_ep_failure_text* text) {
  std::snprintf(text->code, sizeof(text->code), "ERR_MOE_EP_ARGUMENT");
  std::snprintf(text->message, sizeof(text->message),
                "topkIdx: expected -1 or an expert below %" PRId64 ", received %" PRId64
                " for token %" PRId64 ", slot %" PRId64,
                values[0], values[1], values[2], values[3]);
}

}  // namespace moe_ep
