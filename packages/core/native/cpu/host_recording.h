// A recording that native code completes: of a cpu stream.
#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "runtime/recording.h"

namespace moe_ep {

class HostRecording : public Recording {
 public:
  // The stream got here, with the failure that it is in. Once.
  void Complete(MaybeFailure failure);

  MaybeFailure Wait(const uint32_t* abort) override;
  void WhenComplete(std::function<void(MaybeFailure)> then) override;
  bool completed() override;
  int64_t completed_at() override;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool completed_ = false;
  int64_t completed_at_ = 0;
  MaybeFailure failure_;
  std::vector<std::function<void(MaybeFailure)>> waiters_;
};

}  // namespace moe_ep
