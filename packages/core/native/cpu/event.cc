#include "cpu/event.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace moe_ep {

uint64_t Event::Record(Capture* capture) {
  std::lock_guard lock(mutex_);
  capture_ = capture;
  return capture == nullptr ? ++recorded_ : recorded_;
}

uint64_t Event::last_ticket() {
  std::lock_guard lock(mutex_);
  return recorded_;
}

Capture* Event::capture() {
  std::lock_guard lock(mutex_);
  return capture_;
}

void Event::ForgetCapture(const Capture* capture) {
  std::lock_guard lock(mutex_);
  if (capture_ == capture) capture_ = nullptr;
}

uint64_t Event::RecordNow() {
  std::lock_guard lock(mutex_);
  return ++recorded_;
}

void Event::Complete(uint64_t ticket, MaybeFailure failure) {
  std::vector<Waiter> ready;
  {
    std::lock_guard lock(mutex_);
    if (ticket <= completed_) return;
    completed_ = ticket;
    completed_at_ = std::chrono::steady_clock::now().time_since_epoch().count();
    failure_ = failure;
    const auto first = std::stable_partition(waiters_.begin(), waiters_.end(),
                                             [&](const Waiter& waiter) { return waiter.ticket > ticket; });
    std::move(first, waiters_.end(), std::back_inserter(ready));
    waiters_.erase(first, waiters_.end());
  }
  changed_.notify_all();
  for (Waiter& waiter : ready) waiter.then(failure);
}

MaybeFailure Event::Wait(uint64_t ticket, const uint32_t* abort) {
  std::unique_lock lock(mutex_);
  while (completed_ < ticket) {
    if (__atomic_load_n(abort, __ATOMIC_ACQUIRE) != 0) {
      return Failure{"ERR_MOE_EP_ABORTED", "a stream was closed while it waited for an event"};
    }
    changed_.wait_for(lock, std::chrono::milliseconds(20));
  }
  return failure_;
}

bool Event::Completed(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  return completed_ >= ticket;
}

int64_t Event::completed_at() {
  std::lock_guard lock(mutex_);
  return completed_at_;
}

void Event::WhenComplete(uint64_t ticket, std::function<void(MaybeFailure)> then) {
  MaybeFailure failure;
  {
    std::lock_guard lock(mutex_);
    if (completed_ < ticket) {
      waiters_.push_back({ticket, std::move(then)});
      return;
    }
    failure = failure_;
  }
  then(failure);
}

}  // namespace moe_ep
