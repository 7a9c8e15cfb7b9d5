// The native thread of a cuda stream that waits for its events, so that JavaScript need not.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "cuda/cuda_recording.h"
#include "cuda/device.h"
#include "runtime/failure.h"

namespace moe_ep::cuda {

// What a point of a stream says when it is reached.
MaybeFailure OutcomeOf(cudaError_t status, const moe_ep_failure_record* failure,
                       const Aborts& aborts);

class CompletionThread {
 public:
  explicit CompletionThread(Device& device) : state_(std::make_shared<State>(device)) {}
  // The thread ends by itself when its items are done: whoever lets go of this may be another such
  // thread, which must not wait.
  ~CompletionThread();

  struct Item {
    EventPtr event;
    std::shared_ptr<moe_ep_failure_record> failure;  // may be null
    Aborts aborts;
    std::function<void(MaybeFailure)> then;
  };
  // Items of one stream complete in the order in which they are added. The thread starts with the
  // first, also with one that comes after a stop.
  void Add(Item item);

  // Ends the thread when all items are done, and waits for that.
  void Stop();

 private:
  struct State {
    explicit State(Device& device) : device(device) {}
    Device& device;
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Item> items;
    bool stop = false;
    bool running = false;  // the thread will look at the items again
  };
  static void Loop(const std::shared_ptr<State>& state);
  std::thread TakeThread();

  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace moe_ep::cuda
