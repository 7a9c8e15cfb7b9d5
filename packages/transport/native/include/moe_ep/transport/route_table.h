// The table that the transport addon hands to the dispatch families: how each rank is reached. A C
// struct, for it crosses addons; moe_ep/transport/routes.h is the C++ view of it.
#pragma once

#include <stdint.h>

#include "moe_ep/abi.h"

extern "C" {

enum moe_ep_route_kind {
  MOE_EP_ROUTE_NONE = 0,  // not reachable by this table
  MOE_EP_ROUTE_PEER = 1,  // mapped memory, also this rank's own
};

struct moe_ep_route {
  int32_t kind;
  int32_t reserved;
  uint8_t* base;          // start of the mapped segment; null unless PEER
  moe_ep_memory* memory;  // keeps the mapping
};

struct moe_ep_route_table {
  uint32_t size;
  int32_t rank;
  int32_t world_size;
  int32_t spin_iterations;  // how long waits spin before they yield and sleep
  uint64_t num_signals;
  uint64_t payload_offset;
  uint64_t payload_bytes;
  const moe_ep_route* routes;  // world_size entries
};
}

namespace moe_ep {
inline constexpr napi_type_tag kRouteTableTag = {0x6d6f652d65700101, 0x5be10c44d2a94f01};
}  // namespace moe_ep
