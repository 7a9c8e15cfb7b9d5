#include "cuda/completion_thread.h"

#include <chrono>
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
    state_->items.push_back(std::move(item));
    if (!thread_.joinable()) thread_ = std::thread([state = state_] { Loop(state); });
  }
  state_->changed.notify_one();
}

void CompletionThread::Stop() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_one();
  if (!thread_.joinable()) return;
  // The thread itself may let go of the last thing that kept this: it ends soon by itself then.
  if (thread_.get_id() == std::this_thread::get_id()) return thread_.detach();
  thread_.join();
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
      if (state->items.empty()) return;
      item = std::move(state->items.front());
      state->items.pop_front();
    }
    const cudaError_t status = WaitFor(item.event.get(), item.aborts);
    const DriverUse use;
    item.then(OutcomeOf(status, item.failure.get(), item.aborts));
    item = {};
    state->device.Poll();
  }
}

}  // namespace moe_ep::cuda
