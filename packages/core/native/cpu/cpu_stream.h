// A stream of the cpu: a queue of commands and the native thread that runs them in order.
#pragma once

#include <condition_variable>
#include <deque>
#include <thread>

#include "cpu/host_recording.h"
#include "cpu/thread_team.h"
#include "runtime/stream.h"

namespace moe_ep {

class CpuStream final : public Stream {
 public:
  // `ended` is called at the end of the stream's thread, after which Join returns soon. Throws
  // std::system_error when threads cannot be had.
  static std::shared_ptr<CpuStream> Create(const moe_ep_core_api* api, int threads,
                                           std::function<void()> ended = nullptr);
  // Waits for what was enqueued. The stream's own thread never holds the last reference.
  ~CpuStream() override;

  bool WhenDone(std::function<void(MaybeFailure)> then) override;
  CommandPtr DelayCommand(int64_t microseconds) override;
  CommandPtr FailCommand(Failure failure) override;
  void Close(bool abort) override;
  void Join() override;

  const uint32_t* abort_word() const override { return &abort_; }
  void ParallelFor(int64_t count, int64_t grain, ThreadTeam::Body body, void* self) {
    team_.ParallelFor(count, grain, body, self);
  }
  // Called by a running command.
  void Fail(Failure failure) override;

 protected:
  bool Submit(CommandPtr command) override;
  std::shared_ptr<Recording> Mark() override;
  bool Await(const std::shared_ptr<Recording>& recording, bool take_failure) override;
  MaybeFailure Replay(const std::shared_ptr<const Graph>& graph) override;

 private:
  CpuStream(const moe_ep_core_api* api, int threads) : Stream(-1), api_(api), team_(threads) {}
  void Loop();
  void RunOne(const Command& command);
  void Complete(HostRecording* recording);
  // An aborted stream is in failure, whatever took the failure before.
  void NoteAbort();

  const moe_ep_core_api* const api_;
  std::mutex queue_mutex_;
  std::condition_variable changed_;
  std::deque<CommandPtr> queue_;
  bool closing_ = false;
  uint32_t abort_ = 0;
  MaybeFailure failure_;  // touched by the stream's thread only
  ThreadTeam team_;
  std::thread thread_;
};

}  // namespace moe_ep
