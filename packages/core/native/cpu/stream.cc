#include "cpu/stream.h"

#include <utility>
#include <vector>

namespace moe_ep {
namespace {

// The stream that runs a command: in a replayed graph not always the one that recorded it.
Stream* Running(moe_ep_exec* exec) { return static_cast<Stream*>(exec->state); }

CommandPtr Marker(std::function<void(moe_ep_exec*)> function) {
  return std::make_shared<Command>(Command::Kind::kMarker, std::move(function));
}

Failure Closed() { return {"ERR_MOE_EP_RELEASED", "the stream was closed"}; }
Failure Misused(const char* reason) { return {"ERR_MOE_EP_CAPTURE", reason}; }

}  // namespace

std::shared_ptr<Stream> Stream::Create(const moe_ep_core_api* api, int threads,
                                       std::function<void()> ended) {
  std::shared_ptr<Stream> stream(new Stream(api, threads));
  // Owners join the thread before they let go, so it needs no reference of its own.
  stream->thread_ = std::thread([self = stream.get(), ended = std::move(ended)] {
    self->Loop();
    self->team_.Stop();
    self->ended_.store(true, std::memory_order_release);
    if (ended) ended();
  });
  return stream;
}

Stream::~Stream() {
  Close(/*abort=*/false);
  Join();
}

bool Stream::Enqueue(CommandPtr command) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    if (capture_ != nullptr) {
      capture_->Append(this, std::move(command));
      return true;
    }
    queue_.push_back(std::move(command));
  }
  changed_.notify_one();
  return true;
}

MaybeFailure Stream::Record(const std::shared_ptr<Event>& event) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
    if (capture_ != nullptr) {
      capture_->Record(this, event);
      event->NoteIn(capture_);
      return std::nullopt;
    }
  }
  auto recording = std::make_shared<Recording>();
  if (!Enqueue(
          Marker([recording](moe_ep_exec* exec) { Running(exec)->Complete(recording.get()); }))) {
    return Closed();
  }
  event->MoveTo(std::move(recording));
  return std::nullopt;
}

MaybeFailure Stream::WaitFor(const std::shared_ptr<Event>& event, bool take_failure) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
    if (const std::shared_ptr<Capture> capture = event->capture()) {
      if (capture_ != nullptr && capture_ != capture) {
        return Misused("the event belongs to another capture");
      }
      if (capture_ == nullptr) {
        capture->Join(shared_from_this());
        capture_ = capture;
      }
      capture->Wait(this, event);
      return std::nullopt;
    }
  }
  const std::shared_ptr<Recording> recording = event->newest();
  if (recording == nullptr) return std::nullopt;
  const bool enqueued = Enqueue(Marker([recording, take_failure](moe_ep_exec* exec) {
    Stream* const stream = Running(exec);
    MaybeFailure failure = recording->Wait(stream->abort_word());
    if (failure && take_failure) stream->Fail(*std::move(failure));
  }));
  return enqueued ? std::nullopt : MaybeFailure(Closed());
}

MaybeFailure Stream::Launch(const std::shared_ptr<const Graph>& graph) {
  if (capturing()) return Misused("a graph cannot be launched into a capture");
  std::vector<std::pair<std::shared_ptr<Event>, std::shared_ptr<Recording>>> recordings;
  for (const Graph::Step& step : graph->steps) {
    if (step.event != nullptr) recordings.emplace_back(step.event, std::make_shared<Recording>());
  }
  // A marker runs also in failure, and hands the rule on to the commands of the list.
  const bool enqueued = Enqueue(Marker([graph, recordings](moe_ep_exec* exec) {
    Stream* const stream = Running(exec);
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

bool Stream::WhenDone(std::function<void(MaybeFailure)> then) {
  return Enqueue(Marker([then = std::move(then)](moe_ep_exec* exec) {
    then(std::exchange(Running(exec)->failure_, std::nullopt));
  }));
}

MaybeFailure Stream::BeginCapture() {
  std::lock_guard lock(mutex_);
  if (closed_) return Closed();
  if (capture_ != nullptr) return Misused("the stream is already part of a capture");
  capture_ = std::make_shared<Capture>(this);
  began_capture_ = true;
  return std::nullopt;
}

MaybeFailure Stream::EndCapture(Graph* graph) {
  std::shared_ptr<Capture> capture;
  {
    std::lock_guard lock(mutex_);
    if (!began_capture_) return Misused("the stream did not begin a capture");
    began_capture_ = false;
    capture = std::move(capture_);
  }
  for (const std::shared_ptr<Stream>& joined : capture->joined()) {
    std::lock_guard lock(joined->mutex_);
    joined->capture_ = nullptr;
  }
  if (!capture->AllJoinedBack()) {
    return Misused("work of a stream that joined the capture was not joined back by an event");
  }
  graph->steps = capture->TakeSteps();
  return std::nullopt;
}

bool Stream::capturing() {
  std::lock_guard lock(mutex_);
  return capture_ != nullptr;
}

void Stream::Close(bool abort) {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    if (abort) __atomic_store_n(&abort_, 1u, __ATOMIC_RELEASE);
  }
  changed_.notify_one();
}

void Stream::Join() {
  if (thread_.joinable()) thread_.join();
}

void Stream::Fail(Failure failure) {
  // The first failure is the cause; what follows is its consequence.
  if (!failure_) failure_ = std::move(failure);
}

void Stream::Loop() {
  while (true) {
    CommandPtr command;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return;
      command = std::move(queue_.front());
      queue_.pop_front();
    }
    RunOne(*command);
  }
}

void Stream::RunOne(const Command& command) {
  NoteAbort();
  if (failure_ && command.kind == Command::Kind::kWork) return;
  moe_ep_exec exec{api_, this};
  command.Run(&exec);
}

void Stream::Complete(Recording* recording) {
  NoteAbort();
  recording->Complete(failure_);
}

// Markers of an aborted stream still run: whoever waits for one hears of the end instead of waiting
// for ever.
void Stream::NoteAbort() {
  if (__atomic_load_n(&abort_, __ATOMIC_ACQUIRE) == 0) return;
  Fail({"ERR_MOE_EP_ABORTED", "the stream was aborted"});
}

}  // namespace moe_ep
