// A queue of commands and the native thread that runs them in order.
//
// A failing command puts the stream into failure: later work is skipped, markers still run, and the next await takes the
// failure and clears it.
#pragma once

#include <condition_variable>
#include <deque>
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
  static std::shared_ptr<Stream> Create(const moe_ep_core_api* api, int threads);
  ~Stream();

  // False when the stream is closed.
  bool Enqueue(CommandPtr command);
  bool Record(const std::shared_ptr<Event>& event);
  bool WaitFor(const std::shared_ptr<Event>& event);
  bool Launch(const std::shared_ptr<const Graph>& graph);
  // Runs `then` after all work enqueued so far, with the failure it met.
  bool WhenDone(std::function<void(MaybeFailure)> then);

  // Null and a reason when the call breaks a rule of captures.
  const char* BeginCapture();
  const char* EndCapture(Graph* graph);
  bool capturing();

  // Takes no more work. With `abort`, running waits end early and queued work is dropped unrun.
  void Close(bool abort);
  // Blocks until the stream's thread has ended; call Close first.
  void Join();

  int threads() const { return team_.threads(); }
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

  const moe_ep_core_api* const api_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<CommandPtr> queue_;
  bool closed_ = false;
  uint32_t abort_ = 0;
  std::unique_ptr<Capture> own_capture_;
  Capture* capture_ = nullptr;  // own, or the one that was joined
  MaybeFailure failure_;        // touched by the stream's thread only
  ThreadTeam team_;
  std::thread thread_;
};

}  // namespace moe_ep
