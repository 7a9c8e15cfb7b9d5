// Reading the poison record of a control block, whose writer may be in the middle of it.
#pragma once

#include <sched.h>

#include "moe_ep/transport/segment_layout.h"
#include "moe_ep/transport/signal.h"

namespace moe_ep {

inline constexpr const char* kLostWriterCode = "ERR_MOE_EP_PEER_LOST";
inline constexpr const char* kLostWriterMessage = "a rank was lost while it told of a failure";

// Of a record that is not fine: true once it can be read. False when that does not come, because
// whoever writes it was killed in the middle.
inline bool AwaitWritten(const PoisonRecord& poison) {
  constexpr int64_t kPatienceNanoseconds = 1'000'000'000;
  const int64_t patience = MonotonicNanoseconds() + kPatienceNanoseconds;
  while (poison.state.load(std::memory_order_acquire) != PoisonRecord::kPoisoned) {
    if (MonotonicNanoseconds() > patience) return false;
    sched_yield();
  }
  return true;
}

}  // namespace moe_ep
