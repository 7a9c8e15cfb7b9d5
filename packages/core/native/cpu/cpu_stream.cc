#include "cpu/cpu_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

namespace moe_ep {
namespace {

// The stream that runs a command: in a replayed graph not always the one that recorded it.
CpuStream* Running(moe_ep_exec* exec) {
  return static_cast<CpuStream*>(static_cast<Stream*>(exec->state));
}

CommandPtr Marker(std::function<void(moe_ep_exec*)> function) {
  return std::make_shared<Command>(Command::Kind::kMarker, std::move(function));
}

// In short naps, so that the end of an aborted stream need not wait for it.
void Sleep(std::chrono::microseconds time, const uint32_t* abort) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + time;
  while (__atomic_load_n(abort, __ATOMIC_ACQUIRE) == 0) {
    const Clock::duration left = end - Clock::now();
    if (left <= Clock::duration::zero()) return;
    std::this_thread::sleep_for(std::min<Clock::duration>(left, std::chrono::milliseconds(5)));
  }
}

}  // namespace

std::shared_ptr<CpuStream> CpuStream::Create(const moe_ep_core_api* api, int threads,
                                             std::function<void()> ended) {
  std::shared_ptr<CpuStream> stream(new CpuStream(api, threads));
  // Owners join the thread before they let go, so it needs no reference of its own.
  stream->thread_ = std::thread([self = stream.get(), ended = std::move(ended)] {
    self->Loop();
    self->team_.Stop();
    self->ended_.store(true, std::memory_order_release);
    if (ended) ended();
  });
  return stream;
}

CpuStream::~CpuStream() {
  Close(/*abort=*/false);
  Join();
}

bool CpuStream::Submit(CommandPtr command) {
  {
    std::lock_guard lock(queue_mutex_);
    if (closing_) return false;
    queue_.push_back(std::move(command));
  }
  changed_.notify_one();
  return true;
}

std::shared_ptr<Recording> CpuStream::Mark() {
  auto recording = std::make_shared<HostRecording>();
  const bool submitted =
      Submit(Marker([recording](moe_ep_exec* exec) { Running(exec)->Complete(recording.get()); }));
  return submitted ? recording : nullptr;
}

bool CpuStream::Await(const std::shared_ptr<Recording>& event, bool take_failure) {
  const std::shared_ptr<Recording> recording = NewestOf(event);
  // Through Enqueue: in a capture, a wait for work outside of it is a step of the graph.
  return Enqueue(Marker([recording, take_failure](moe_ep_exec* exec) {
    CpuStream* const stream = Running(exec);
    MaybeFailure failure = recording->Wait(stream->abort_word());
    if (failure && take_failure) stream->Fail(*std::move(failure));
  }));
}

MaybeFailure CpuStream::Replay(const std::shared_ptr<const Graph>& graph) {
  std::vector<std::pair<std::shared_ptr<Event>, std::shared_ptr<HostRecording>>> recordings;
  for (const Graph::Step& step : graph->steps) {
    if (step.event != nullptr)
      recordings.emplace_back(step.event, std::make_shared<HostRecording>());
  }
  // A marker runs also in failure, and hands the rule on to the commands of the list.
  const bool enqueued = Enqueue(Marker([graph, recordings](moe_ep_exec* exec) {
    CpuStream* const stream = Running(exec);
    auto next = recordings.begin();
    for (const Graph::Step& step : graph->steps) {
      if (step.command != nullptr) {
        stream->RunOne(*step.command);
      } else {
        stream->Complete((next++)->second.get());
      }
    }
  }));
  if (!enqueued) return Closed();
  for (auto& [event, recording] : recordings) event->MoveTo(std::move(recording));
  return std::nullopt;
}

bool CpuStream::WhenDone(std::function<void(MaybeFailure)> then) {
  return Submit(Marker([then = std::move(then)](moe_ep_exec* exec) {
    then(std::exchange(Running(exec)->failure_, std::nullopt));
  }));
}

CommandPtr CpuStream::DelayCommand(int64_t microseconds) {
  const std::chrono::microseconds time(microseconds);
  return std::make_shared<Command>(Command::Kind::kWork, [time](moe_ep_exec* exec) {
    Sleep(time, Running(exec)->abort_word());
  });
}

CommandPtr CpuStream::FailCommand(Failure failure) {
  return Marker(
      [failure = std::move(failure)](moe_ep_exec* exec) { Running(exec)->Fail(failure); });
}

void CpuStream::Close(bool abort) {
  MarkClosed();
  {
    std::lock_guard lock(queue_mutex_);
    closing_ = true;
    if (abort) __atomic_store_n(&abort_, 1u, __ATOMIC_RELEASE);
  }
  changed_.notify_one();
}

void CpuStream::Join() {
  if (thread_.joinable()) thread_.join();
}

void CpuStream::Fail(Failure failure) {
  // The first failure is the cause; what follows is its consequence.
  if (!failure_) failure_ = std::move(failure);
}

void CpuStream::Loop() {
  while (true) {
    CommandPtr command;
    {
      std::unique_lock lock(queue_mutex_);
      changed_.wait(lock, [this] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) return;
      command = std::move(queue_.front());
      queue_.pop_front();
    }
    RunOne(*command);
  }
}

void CpuStream::RunOne(const Command& command) {
  NoteAbort();
  if (failure_ && command.kind == Command::Kind::kWork) return;
  moe_ep_exec exec{api_, static_cast<Stream*>(this), -1, nullptr, nullptr};
  command.Run(&exec);
}

void CpuStream::Complete(HostRecording* recording) {
  NoteAbort();
  recording->Complete(failure_);
}

// Markers of an aborted stream still run: whoever waits for one hears of the end instead of waiting
// for ever.
void CpuStream::NoteAbort() {
  if (__atomic_load_n(&abort_, __ATOMIC_ACQUIRE) == 0) return;
  Fail({"ERR_MOE_EP_ABORTED", "the stream was aborted"});
}

}  // namespace moe_ep
