// Access to core's table from another addon.
#pragma once

#include "moe_ep/abi.h"

namespace moe_ep {

// Set by initialize(). The table is static in core's addon, so one pointer a process serves all
// environments.
inline const moe_ep_core_api*& CoreTable() {
  static const moe_ep_core_api* table = nullptr;
  return table;
}

inline const moe_ep_core_api& Core() { return *CoreTable(); }

}  // namespace moe_ep
