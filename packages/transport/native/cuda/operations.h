// Single operations on a cuda stream, for peers whose memory is mapped.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "moe_ep/command.h"
#include "moe_ep/transport/routes.h"

namespace moe_ep::cuda {

// A copy into the payload of `peer`, visible there to who sees a later signal of this stream. Of a
// group that was poisoned it is the signal that tells.
void Put(const Exec& exec, const Routes& routes, int peer, uint64_t offset, const void* source,
         uint64_t bytes);
// Several at once, by one kernel on so many multiprocessors; 0: the default.
struct PutPart {
  const uint8_t* from;
  uint8_t* to;
  int64_t bytes;
};
void PutAll(const Exec& exec, const std::vector<PutPart>& parts, int64_t sms);
void Signal(const Exec& exec, const Routes& routes, int peer, uint64_t index, uint64_t value);
void Add(const Exec& exec, const Routes& routes, int peer, uint64_t index, int64_t delta);

// What a wait is for, in words that outlive it; see kept_texts.h.
struct WaitedSignal {
  uint64_t index;
  uint64_t value;
  int64_t timeout_ms;
  const std::string* what;
};
void Wait(const Exec& exec, const Routes& routes, const WaitedSignal& wait);

}  // namespace moe_ep::cuda
