#include "cuda/completion_thread.h"

#include <chrono>
#include <string>
#include <utility>

#include "cuda/host_failures.h"

namespace moe_ep::cuda {
namespace {

// Most waits are short: a look costs less than the sleep of a blocking wait.
cudaError_t WaitFor(cudaEvent_t event) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(100);
  cudaError_t status;
  while ((status = cudaEventQuery(event)) == cudaErrorNotReady) {
    if (Clock::now() >= end) return cudaEventSynchronize(event);
  }
  return status;
}

}  // namespace

MaybeFailure OutcomeOf(cudaError_t status, const moe_ep_failure_record* failure,
                       const AbortWords& aborts) {
  if (status != cudaSuccess) {
    cudaGetLastError();
    return Failure{"ERR_MOE_EP_INTERNAL",
                   std::string("the device failed: ") + cudaGetErrorName(status)};
  }
  if (failure != nullptr) {
    if (MaybeFailure known = FailureOf(*failure)) return known;
  }
  if (AnyAborted(aborts)) return AbortFailure();
  return std::nullopt;
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
  state->device.MakeCurrent();
  while (true) {
    Item item;
    {
      std::unique_lock lock(state->mutex);
      state->changed.wait(lock, [&] { return state->stop || !state->items.empty(); });
      if (state->items.empty()) return;
      item = std::move(state->items.front());
      state->items.pop_front();
    }
    item.then(OutcomeOf(WaitFor(item.event.get()), item.failure.get(), item.aborts));
    item = {};
    state->device.Poll();
  }
}

}  // namespace moe_ep::cuda
