// An ordered queue of commands on a device. What all devices share: who may enqueue when, captures
// and plans. Devices say how work runs.
//
// A failing command puts the stream into failure: later work is skipped, markers still run, and the
// next await takes the failure and clears it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "runtime/command.h"
#include "runtime/event.h"
#include "runtime/failure.h"
#include "runtime/graph.h"

namespace moe_ep {

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  virtual ~Stream() = default;

  // -1: cpu, otherwise the CUDA ordinal.
  int device() const { return device_; }

  // False when the stream is closed.
  bool Enqueue(CommandPtr command);
  // Runs `then` after all work enqueued so far, with the failure it met. False when it is closed.
  virtual bool WhenDone(std::function<void(MaybeFailure)> then) = 0;

  // The failure is the caller's, not the stream's: closed, or a broken rule of captures.
  // `timed` false: in a graph its time is that of the end of the launch.
  MaybeFailure Record(const std::shared_ptr<Event>& event, bool timed = true);
  // With `take_failure`, what failed before the event fails here, too.
  MaybeFailure WaitFor(const std::shared_ptr<Event>& event, bool take_failure);
  MaybeFailure Launch(const std::shared_ptr<const Graph>& graph);
  MaybeFailure BeginCapture();
  MaybeFailure EndCapture(Graph* graph);
  bool capturing();
  // Whether what is enqueued now is kept for a graph or a plan.
  bool recording();

  // Commands are kept for a plan instead of running.
  MaybeFailure BeginPlan();
  MaybeFailure EndPlan(Plan* plan);
  MaybeFailure Launch(const Plan& plan);

  // Work that only takes time, and work that fails; tests use them.
  virtual CommandPtr DelayCommand(int64_t microseconds) = 0;
  virtual CommandPtr FailCommand(Failure failure) = 0;

  // Takes no more work. With `abort`, running waits end early, queued work is skipped, and who
  // awaits it gets a failure.
  virtual void Close(bool abort) = 0;
  // Blocks until nothing of the stream runs any more; call Close first.
  virtual void Join() = 0;
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  // Whether Join would return at once, the stream being closed.
  virtual bool Idle() { return ended(); }
  virtual const uint32_t* abort_word() const = 0;
  // Called by a running command.
  virtual void Fail(Failure failure) = 0;

 protected:
  explicit Stream(int device) : device_(device) {}

  // Called with the stream open and not captured.
  virtual bool Submit(CommandPtr command) = 0;
  // Null when the stream was closed meanwhile.
  virtual std::shared_ptr<Recording> Mark() = 0;
  virtual bool Await(const std::shared_ptr<Recording>& recording, bool take_failure) = 0;
  virtual MaybeFailure Replay(const std::shared_ptr<const Graph>& graph) = 0;

  // Whether somebody whose stream this is, too, captures it: then work goes to a graph of theirs.
  virtual bool OwnerCaptures() { return false; }
  // Whether a recording of such a capture was made in the same one.
  virtual bool SharesCapture(Recording&) { return false; }

  // What a device does when its stream is part of a capture, besides what the list notes. A capture
  // of the cpu is the list.
  virtual MaybeFailure CaptureBegun(Capture&) { return std::nullopt; }
  virtual MaybeFailure CaptureJoined(Capture&) { return std::nullopt; }
  virtual void CaptureCommand(const CommandPtr&) {}
  virtual void CaptureRecord(Capture&, const std::shared_ptr<Event>&, bool /*timed*/) {}
  virtual void CaptureWait(Capture&, const std::shared_ptr<Event>&) {}
  // By then no stream is captured any more; `valid` says whether the graph will be used.
  virtual MaybeFailure CaptureEnded(Capture&, bool) { return std::nullopt; }

  bool MarkClosed();  // false when it was closed before
  bool closed();
  static Failure Closed() { return {"ERR_MOE_EP_RELEASED", "the stream was closed"}; }
  static Failure Misused(const char* reason) { return {"ERR_MOE_EP_CAPTURE", reason}; }

  std::atomic<bool> ended_ = false;

 private:
  std::shared_ptr<Capture> CurrentCapture();

  const int device_;
  std::mutex mutex_;
  bool closed_ = false;
  std::shared_ptr<Capture> capture_;  // begun here, or joined
  bool began_capture_ = false;
  std::unique_ptr<Plan> plan_;
};

}  // namespace moe_ep
