// One recording of an event: a point in a stream's work, which is reached once.
//
// Whoever waits keeps the recording that was the newest when it asked. That the event is recorded
// again, elsewhere and maybe completing earlier, changes nothing for it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "cpu/failure.h"

namespace moe_ep {

class Recording {
 public:
  // The stream got here, with the failure that it is in. Once.
  void Complete(MaybeFailure failure);

  // Blocks a stream's thread; returns the recorded stream's failure. Ends early when *abort is set.
  MaybeFailure Wait(const uint32_t* abort);
  // Calls `then` on completion, maybe at once; `then` may come on any thread.
  void WhenComplete(std::function<void(MaybeFailure)> then);

  bool completed();
  // Monotonic nanoseconds; 0 until it is complete.
  int64_t completed_at();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool completed_ = false;
  int64_t completed_at_ = 0;
  MaybeFailure failure_;
  std::vector<std::function<void(MaybeFailure)>> waiters_;
};

}  // namespace moe_ep
