// Why a kernel gave up, in 64 bits: what fits into one store to a peer's memory. Kernels write it
// into the control block of every rank's device segment; hosts make words of it.
#pragma once

#include <cstdint>

#include "moe_ep/host_device.h"

namespace moe_ep {

// What a kernel was doing when it waited for a peer, and what did not come.
enum class Operation : uint8_t {
  kWait = 0,  // of SymmetricMemory itself
  kIntranodeDispatch = 1,
  kIntranodeCombine = 2,
  kLowLatencyDispatch = 3,
  kLowLatencyCombine = 4,
};
enum class Missing : uint8_t {
  kSignal = 0,
  kCounts = 1,
  kFreeSlot = 2,
  kCombineRead = 3,
  kRows = 4,
  kResults = 5,
  kCall = 6,
  kMessages = 7,
};

struct PoisonWord {
  enum Cause : uint8_t { kNone = 0, kTimeout = 1, kAborted = 2 };

  Cause cause;
  Operation operation;
  Missing missing;
  uint8_t slot;
  uint16_t rank;  // that gave up
  uint16_t peer;  // that it waited for

  // Of a wait of SymmetricMemory itself, which knows a signal and no peer: its index, below 2^24,
  // is kept where other operations name slot and peer.
  MOE_EP_HOST_DEVICE static PoisonWord OfSignal(int rank, uint64_t index) {
    return {kNone,
            Operation::kWait,
            Missing::kSignal,
            static_cast<uint8_t>(index & 0xff),
            static_cast<uint16_t>(rank),
            static_cast<uint16_t>(index >> 8 & 0xffff)};
  }
  MOE_EP_HOST_DEVICE uint64_t SignalIndex() const {
    return static_cast<uint64_t>(slot) | static_cast<uint64_t>(peer) << 8;
  }

  MOE_EP_HOST_DEVICE uint64_t Pack() const {
    return static_cast<uint64_t>(cause) | static_cast<uint64_t>(operation) << 8 |
           static_cast<uint64_t>(missing) << 16 | static_cast<uint64_t>(slot) << 24 |
           static_cast<uint64_t>(rank) << 32 | static_cast<uint64_t>(peer) << 48;
  }
  MOE_EP_HOST_DEVICE static PoisonWord Unpack(uint64_t word) {
    return {static_cast<Cause>(word & 0xff),
            static_cast<Operation>(word >> 8 & 0xff),
            static_cast<Missing>(word >> 16 & 0xff),
            static_cast<uint8_t>(word >> 24 & 0xff),
            static_cast<uint16_t>(word >> 32 & 0xffff),
            static_cast<uint16_t>(word >> 48)};
  }
};

// The first page of a device segment. Signals and payload follow as in a segment of the cpu.
struct DeviceControl {
  uint64_t poison;  // a PoisonWord, 0 while all is well
};

}  // namespace moe_ep
