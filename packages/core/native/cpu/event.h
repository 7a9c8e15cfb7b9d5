// A point in a stream's work. Recording moves it; waiting means the newest recording made before the wait was enqueued.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "cpu/failure.h"

namespace moe_ep {

class Capture;

class Event {
 public:
  // Host side: a ticket for a recording that will complete later.
  uint64_t Record(Capture* capture);
  uint64_t last_ticket();
  // The running capture that holds the newest recording, if any; other streams join it by waiting.
  Capture* capture();
  void ForgetCapture(const Capture* capture);

  // Device side.
  void Complete(uint64_t ticket, MaybeFailure failure);
  // Inside a replayed graph tickets are taken when the command runs.
  uint64_t RecordNow();
  // Blocks a stream's thread; returns the recorded stream's failure. Ends early when *abort is set.
  MaybeFailure Wait(uint64_t ticket, const uint32_t* abort);

  bool Completed(uint64_t ticket);
  // Monotonic nanoseconds of the newest completion; 0 before the first.
  int64_t completed_at();
  // Calls `then` once `ticket` is complete, maybe at once; `then` may come on any thread.
  void WhenComplete(uint64_t ticket, std::function<void(MaybeFailure)> then);

 private:
  struct Waiter {
    uint64_t ticket;
    std::function<void(MaybeFailure)> then;
  };

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t recorded_ = 0;
  uint64_t completed_ = 0;
  int64_t completed_at_ = 0;
  MaybeFailure failure_;
  Capture* capture_ = nullptr;
  std::vector<Waiter> waiters_;
};

}  // namespace moe_ep
