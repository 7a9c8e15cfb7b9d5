#include "cpu/host_recording.h"

#include <chrono>
#include <utility>

namespace moe_ep {

void HostRecording::Complete(MaybeFailure failure) {
  std::vector<std::function<void(MaybeFailure)>> waiters;
  {
    std::lock_guard lock(mutex_);
    completed_ = true;
    completed_at_ = std::chrono::duration_cast<std::chrono::nanoseconds>(
                        std::chrono::steady_clock::now().time_since_epoch())
                        .count();
    failure_ = failure;
    waiters.swap(waiters_);
  }
  changed_.notify_all();
  for (const auto& then : waiters) then(failure);
}

MaybeFailure HostRecording::Wait(const uint32_t* abort) {
  std::unique_lock lock(mutex_);
  while (!completed_) {
    if (__atomic_load_n(abort, __ATOMIC_ACQUIRE) != 0) {
      return Failure{"ERR_MOE_EP_ABORTED", "a stream was aborted while it waited for an event"};
    }
    changed_.wait_for(lock, std::chrono::milliseconds(20));
  }
  return failure_;
}

void HostRecording::WhenComplete(std::function<void(MaybeFailure)> then) {
  MaybeFailure failure;
  {
    std::lock_guard lock(mutex_);
    if (!completed_) {
      waiters_.push_back(std::move(then));
      return;
    }
    failure = failure_;
  }
  then(failure);
}

bool HostRecording::completed() {
  std::lock_guard lock(mutex_);
  return completed_;
}

int64_t HostRecording::completed_at() {
  std::lock_guard lock(mutex_);
  return completed_at_;
}

}  // namespace moe_ep
