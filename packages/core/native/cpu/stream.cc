#include "cpu/stream.h"

#include <utility>

namespace moe_ep {
namespace {

// The stream that runs a command: in a replayed graph not always the one that recorded it.
Stream* Running(moe_ep_exec* exec) { return static_cast<Stream*>(exec->state); }

}  // namespace

std::shared_ptr<Stream> Stream::Create(const moe_ep_core_api* api, int threads) {
  std::shared_ptr<Stream> stream(new Stream(api, threads));
  // The thread keeps the stream alive until it has run what was enqueued.
  stream->thread_ = std::thread([stream] { stream->Loop(); });
  return stream;
}

Stream::~Stream() {
  if (!thread_.joinable()) return;
  // The last reference may be the thread's own.
  if (thread_.get_id() == std::this_thread::get_id()) {
    thread_.detach();
  } else {
    thread_.join();
  }
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

bool Stream::Record(const std::shared_ptr<Event>& event) {
  Capture* capture;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    capture = capture_;
  }
  if (capture != nullptr) {
    event->Record(capture);
    const bool enqueued = Enqueue(std::make_shared<Command>(
        Command::Kind::kMarker,
        [event](moe_ep_exec* exec) { event->Complete(event->RecordNow(), Running(exec)->failure_); }));
    capture->Recorded(event, this);
    return enqueued;
  }
  const uint64_t ticket = event->Record(nullptr);
  return Enqueue(std::make_shared<Command>(Command::Kind::kMarker, [event, ticket](moe_ep_exec* exec) {
    event->Complete(ticket, Running(exec)->failure_);
  }));
}

bool Stream::WaitFor(const std::shared_ptr<Event>& event) {
  if (Capture* capture = event->capture(); capture != nullptr) {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    if (capture_ == nullptr) {
      capture_ = capture;
      capture->Join(this);
    }
    // The linear order of the list is the dependency: nothing needs to wait at replay.
    if (capture_ == capture) {
      capture->Waited(event);
      return true;
    }
  }
  const uint64_t ticket = event->last_ticket();
  return Enqueue(std::make_shared<Command>(Command::Kind::kMarker, [event, ticket](moe_ep_exec* exec) {
    Stream* const stream = Running(exec);
    MaybeFailure failure = event->Wait(ticket, stream->abort_word());
    if (failure) stream->Fail(*std::move(failure));
  }));
}

bool Stream::Launch(const std::shared_ptr<const Graph>& graph) {
  // A marker runs also in failure, and hands the rule on to the commands of the list.
  return Enqueue(std::make_shared<Command>(Command::Kind::kMarker, [graph](moe_ep_exec* exec) {
    for (const CommandPtr& command : graph->commands) Running(exec)->RunOne(*command);
  }));
}

bool Stream::WhenDone(std::function<void(MaybeFailure)> then) {
  return Enqueue(std::make_shared<Command>(Command::Kind::kMarker, [then = std::move(then)](moe_ep_exec* exec) {
    then(std::exchange(Running(exec)->failure_, std::nullopt));
  }));
}

const char* Stream::BeginCapture() {
  std::lock_guard lock(mutex_);
  if (closed_) return "the stream is closed";
  if (capture_ != nullptr) return "the stream is already part of a capture";
  own_capture_ = std::make_unique<Capture>(this);
  capture_ = own_capture_.get();
  return nullptr;
}

const char* Stream::EndCapture(Graph* graph) {
  std::unique_ptr<Capture> capture;
  {
    std::lock_guard lock(mutex_);
    if (own_capture_ == nullptr) return "the stream did not begin a capture";
    capture = std::move(own_capture_);
    capture_ = nullptr;
  }
  for (Stream* joined : capture->joined()) {
    if (joined == this) continue;
    std::lock_guard lock(joined->mutex_);
    joined->capture_ = nullptr;
  }
  for (const std::shared_ptr<Event>& event : capture->events()) event->ForgetCapture(capture.get());
  const bool joined_back = capture->AllJoinedBack();
  graph->commands = capture->TakeCommands();
  return joined_back ? nullptr : "a stream that joined the capture was not joined back by an event";
}

bool Stream::capturing() {
  std::lock_guard lock(mutex_);
  return capture_ != nullptr;
}

void Stream::Close(bool abort) {
  std::deque<CommandPtr> dropped;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    if (abort) {
      __atomic_store_n(&abort_, 1u, __ATOMIC_RELEASE);
      dropped.swap(queue_);
    }
  }
  changed_.notify_one();
}

void Stream::Join() {
  if (thread_.joinable() && thread_.get_id() != std::this_thread::get_id()) thread_.join();
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
  if (failure_ && command.kind == Command::Kind::kWork) return;
  moe_ep_exec exec{api_, this};
  command.Run(&exec);
}

}  // namespace moe_ep
