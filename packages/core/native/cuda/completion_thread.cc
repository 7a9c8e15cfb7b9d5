#include "cuda/completion_thread.h"

#include <chrono>
#include <exception>
#include <string>
#include <utility>

#include "cuda/driver_use.h"
#include "cuda/host_failures.h"

namespace moe_ep::cuda {
namespace {

// Most waits are short: looking costs less than sleeping. An abort ends a wait at once; what is
// left on the device ends by itself.
cudaError_t WaitFor(cudaEvent_t event, const Aborts& aborts) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point spin_until = Clock::now() + std::chrono::microseconds(100);
  while (true) {
    {
      const DriverUse use;
      const RelaxedCaptures relaxed;
      const cudaError_t status = cudaEventQuery(event);
      if (status != cudaErrorNotReady) return status;
      if (AnyAborted(aborts)) return cudaSuccess;
    }
    if (Clock::now() >= spin_until) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

}  // namespace

MaybeFailure OutcomeOf(cudaError_t status, const moe_ep_failure_record* failure,
                       const Aborts& aborts) {
  if (status != cudaSuccess) {
    cudaGetLastError();
    return Failure{"ERR_MOE_EP_INTERNAL",
                   std::string("the device failed: ") + cudaGetErrorName(status)};
  }
  // An abort may have ended the wait before the failure was written.
  if (AnyAborted(aborts)) return AbortFailure();
  return failure == nullptr ? std::nullopt : FailureOf(*failure);
}

void CompletionThread::Add(Item item) {
  {
    std::lock_guard lock(state_->mutex);
    if (!state_->running) {
      if (thread_.joinable()) thread_.join();  // it has ended, but for its last steps
      // Before there is an item: where it cannot start nobody must find one.
      thread_ = std::thread([state = state_] { Loop(state); });
      state_->running = true;
    }
    state_->items.push_back(std::move(item));
  }
  state_->changed.notify_one();
}

// Tells the thread to end, and gives it away.
std::thread CompletionThread::TakeThread() {
  std::thread thread;
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
    thread.swap(thread_);
  }
  state_->changed.notify_one();
  return thread;
}

CompletionThread::~CompletionThread() {
  if (std::thread thread = TakeThread(); thread.joinable()) thread.detach();
}

void CompletionThread::Stop() {
  std::thread thread = TakeThread();
  if (!thread.joinable()) return;
  // The thread itself may let go of the last thing that kept a stream: it ends soon by itself then.
  if (thread.get_id() == std::this_thread::get_id()) return thread.detach();
  thread.join();
}

void CompletionThread::Loop(const std::shared_ptr<State>& state) {
  {
    const DriverUse use;
    state->device.MakeCurrent();
  }
  while (true) {
    Item item;
    {
      std::unique_lock lock(state->mutex);
      state->changed.wait(lock, [&] { return state->stop || !state->items.empty(); });
      if (state->items.empty()) {
        state->running = false;
        return;
      }
      item = std::move(state->items.front());
      state->items.pop_front();
    }
    const cudaError_t status = WaitFor(item.event.get(), item.aborts);
    const DriverUse use;
    item.then(OutcomeOf(status, item.failure.get(), item.aborts));
    item = {};
    try {
      state->device.Poll();
    } catch (const std::exception&) {
      // The device or its memory has failed: whoever uses it next is told.
    }
  }
}

}  // namespace moe_ep::cuda
