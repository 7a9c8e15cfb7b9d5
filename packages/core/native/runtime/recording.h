// One recording of an event: a point in a stream's work, which is reached once.
//
// Whoever waits keeps the recording that was the newest when it asked. That the event is recorded
// again, elsewhere and maybe completing earlier, changes nothing for it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "runtime/failure.h"

namespace moe_ep {

class Recording {
 public:
  virtual ~Recording() = default;

  // Blocks a native thread; returns the recorded stream's failure. Ends early when *abort is set.
  virtual MaybeFailure Wait(const uint32_t* abort) = 0;
  // Calls `then` on completion, maybe at once; `then` may come on any thread.
  virtual void WhenComplete(std::function<void(MaybeFailure)> then) = 0;

  virtual bool completed() = 0;
  // Whether the owner of its stream still captures what was recorded: nothing tells when that is
  // reached.
  virtual bool captured() { return false; }
  // Where it is reached again and again: the recording that is the newest now. Null: it is one
  // point for ever. See NewestOf.
  virtual std::shared_ptr<Recording> AsOfNow() { return nullptr; }
  // Monotonic nanoseconds of the host's clock; 0 until it is complete.
  virtual int64_t completed_at() = 0;
};

// What whoever asks now waits for. Throws.
inline std::shared_ptr<Recording> NewestOf(const std::shared_ptr<Recording>& recording) {
  std::shared_ptr<Recording> now = recording->AsOfNow();
  return now != nullptr ? now : recording;
}

}  // namespace moe_ep
