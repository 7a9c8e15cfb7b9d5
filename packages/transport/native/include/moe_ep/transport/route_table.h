// The table that the transport addon hands to the dispatch families: how each rank is reached. A C
// struct, for it crosses addons; moe_ep/transport/routes.h is the C++ view of it for the cpu,
// moe_ep/transport/device_routes.cuh the one for kernels.
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
  uint8_t* base;  // start of the mapped segment, on the table's device; null unless PEER
  void* control;  // the rank's control block, where the host reads and writes it; null unless PEER.
                  // On the cpu it opens the segment.
};

struct moe_ep_route_table {
  uint32_t size;
  int32_t rank;
  int32_t world_size;
  int32_t device;           // -1: cpu, otherwise the CUDA ordinal
  int32_t spin_iterations;  // how long waits of the cpu spin before they yield and sleep
  int32_t reserved;
  uint64_t num_signals;
  uint64_t payload_offset;
  uint64_t payload_bytes;
  const moe_ep_route* routes;  // world_size entries
  // All that the table refers to: users pin it.
  moe_ep_memory* const* memories;
  uint64_t num_memories;

  // For kernels; null on the cpu.
  uint8_t* const* device_bases;  // routes[].base, in device memory
  const uint32_t* host_poison;   // state of this rank's control block, as the device sees it
  // Makes words of values that a kernel found: {word, rank} of a poison word that is not 0, else
  // {0, rank, poison_id} for what the control block says.
  moe_ep_describe_failure describe_poison;
  int64_t poison_id;
};
}

namespace moe_ep {
inline constexpr napi_type_tag kRouteTableTag = {0x6d6f652d65700102, 0x5be10c44d2a94f01};
}  // namespace moe_ep
