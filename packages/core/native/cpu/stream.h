// A queue of commands and the native thread that runs them in order.
//
// A failing command puts the stream into failure: later work is skipped, markers still run, and the
// next await takes the failure and clears it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "cpu/command.h"
#include "cpu/event.h"
#include "cpu/failure.h"
#include "cpu/graph.h"
#include "cpu/thread_team.h"

namespace moe_ep {

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  // `ended` is called at the end of the stream's thread, after which Join returns soon. Throws
  // std::system_error when threads cannot be had.
  static std::shared_ptr<Stream> Create(const moe_ep_core_api* api, int threads,
                                        std::function<void()> ended = nullptr);
  // Waits for what was enqueued. The stream's own thread never holds the last reference.
  ~Stream();

  // False when the stream is closed.
  bool Enqueue(CommandPtr command);
  // Runs `then` after all work enqueued so far, with the failure it met. False when it is closed.
  bool WhenDone(std::function<void(MaybeFailure)> then);

  // The failure is the caller's, not the stream's: closed, or a broken rule of captures.
  MaybeFailure Record(const std::shared_ptr<Event>& event);
  // With `take_failure`, what failed before the event fails here, too.
  MaybeFailure WaitFor(const std::shared_ptr<Event>& event, bool take_failure);
  MaybeFailure Launch(const std::shared_ptr<const Graph>& graph);
  MaybeFailure BeginCapture();
  MaybeFailure EndCapture(Graph* graph);
  bool capturing();

  // Takes no more work. With `abort`, running waits end early, queued work is skipped, and who
  // awaits it gets a failure.
  void Close(bool abort);
  // Blocks until the stream's thread has ended; call Close first.
  void Join();
  bool ended() const { return ended_.load(std::memory_order_acquire); }

  const uint32_t* abort_word() const { return &abort_; }
  void ParallelFor(int64_t count, int64_t grain, ThreadTeam::Body body, void* self) {
    team_.ParallelFor(count, grain, body, self);
  }
  // Called by a running command.
  void Fail(Failure failure);

 private:
  Stream(const moe_ep_core_api* api, int threads) : api_(api), team_(threads) {}
  void Loop();
  void RunOne(const Command& command);
  void Complete(Recording* recording);
  // An aborted stream is in failure, whatever took the failure before.
  void NoteAbort();

  const moe_ep_core_api* const api_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<CommandPtr> queue_;
  bool closed_ = false;
  uint32_t abort_ = 0;
  std::atomic<bool> ended_ = false;
  std::shared_ptr<Capture> capture_;  // begun here, or joined
  bool began_capture_ = false;
  MaybeFailure failure_;  // touched by the stream's thread only
  ThreadTeam team_;
  std::thread thread_;
};

}  // namespace moe_ep
