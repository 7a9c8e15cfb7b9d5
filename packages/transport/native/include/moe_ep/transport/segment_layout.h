// How the bytes of one rank's symmetric segment are divided. The same on every rank.
//
//   [0, 4096)           control block: poison record
//   [4096, payload)     signals, one cache line each: payload never overlaps them
//   [payload, end)      payload
#pragma once

#include <atomic>
#include <cstdint>

#include "moe_ep/transport/signal.h"

namespace moe_ep {

inline constexpr uint64_t kSegmentMagic = 0x6d6f652d65702d31;  // "moe-ep-1"
inline constexpr uint64_t kControlBytes = 4096;
inline constexpr uint64_t kPageBytes = 4096;

// Why a group must not go on. Written once, by whoever fails first.
struct PoisonRecord {
  enum State : uint32_t { kFine = 0, kWriting = 1, kPoisoned = 2 };
  std::atomic<uint32_t> state;
  char code[60];
  char message[960];
};

struct ControlBlock {
  uint64_t magic;
  uint64_t payload_bytes;
  uint64_t num_signals;
  alignas(64) PoisonRecord poison;
  // Of the rank's device memory, where it is shared by CUDA's ipc handles: by how many peers.
  alignas(64) std::atomic<uint32_t> ipc_mappings;
};
static_assert(sizeof(ControlBlock) <= kControlBytes);

inline uint64_t PayloadOffset(uint64_t num_signals) {
  const uint64_t end = kControlBytes + num_signals * sizeof(SignalCell);
  return (end + kPageBytes - 1) / kPageBytes * kPageBytes;
}

}  // namespace moe_ep
