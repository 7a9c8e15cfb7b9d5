#include "runtime/stream.h"

#include <utility>

namespace moe_ep {

bool Stream::Enqueue(CommandPtr command) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    if (plan_ != nullptr) {
      plan_->commands.push_back(std::move(command));
      return true;
    }
    if (capture_ == nullptr) return Submit(std::move(command));
    capture_->Append(this, command);
  }
  CaptureCommand(command);
  return true;
}

MaybeFailure Stream::Record(const std::shared_ptr<Event>& event, bool timed) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
    if (plan_ != nullptr) return Misused("a plan holds operations only, no events");
    if (capture_ != nullptr) {
      capture_->Record(this, event);
      event->NoteIn(capture_);
      CaptureRecord(*capture_, event, timed);
      return std::nullopt;
    }
  }
  std::shared_ptr<Recording> recording = Mark();
  if (recording == nullptr) return Closed();
  event->MoveTo(std::move(recording));
  return std::nullopt;
}

MaybeFailure Stream::WaitFor(const std::shared_ptr<Event>& event, bool take_failure) {
  const std::shared_ptr<Capture> capture = event->capture();
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Closed();
    if (plan_ != nullptr) return Misused("a plan holds operations only, no events");
    if (capture != nullptr) {
      if (capture_ != nullptr && capture_ != capture)
        return Misused("the event belongs to another capture");
      if (capture_ == nullptr) {
        if (MaybeFailure failure = CaptureJoined(*capture)) return failure;
        capture->Join(shared_from_this());
        capture_ = capture;
      }
      capture->Wait(this, event);
      CaptureWait(*capture, event);
      return std::nullopt;
    }
  }
  const std::shared_ptr<Recording> recording = event->newest();
  if (recording == nullptr) return std::nullopt;
  if (recording->captured() && !SharesCapture(*recording))
    return Misused(
        "the owner of the event's stream captures it, and this stream is no part of that");
  return Await(recording, take_failure) ? std::nullopt : MaybeFailure(Closed());
}

MaybeFailure Stream::Launch(const std::shared_ptr<const Graph>& graph) {
  if (capturing()) return Misused("a graph cannot be launched into a capture");
  if (closed()) return Closed();
  if (graph->device != device())
    return Failure{"ERR_MOE_EP_ARGUMENT", "the graph was captured on another device"};
  return Replay(graph);
}

MaybeFailure Stream::BeginCapture() {
  std::lock_guard lock(mutex_);
  if (closed_) return Closed();
  if (plan_ != nullptr) return Misused("a capture cannot begin inside a plan");
  if (capture_ != nullptr) return Misused("the stream is already part of a capture");
  auto capture = std::make_shared<Capture>(this);
  if (MaybeFailure failure = CaptureBegun(*capture)) return failure;
  capture_ = std::move(capture);
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
  const bool valid = capture->AllJoinedBack();
  MaybeFailure failure = CaptureEnded(*capture, valid);
  for (const std::shared_ptr<Stream>& joined : capture->joined()) {
    std::lock_guard lock(joined->mutex_);
    joined->capture_ = nullptr;
  }
  if (!valid)
    return Misused("work of a stream that joined the capture was not joined back by an event");
  if (failure) return failure;
  graph->device = device();
  graph->steps = capture->TakeSteps();
  graph->device_graph = std::move(capture->device_graph);
  return std::nullopt;
}

bool Stream::capturing() { return CurrentCapture() != nullptr || (!closed() && OwnerCaptures()); }

bool Stream::recording() {
  {
    std::lock_guard lock(mutex_);
    if (capture_ != nullptr || plan_ != nullptr) return true;
    if (closed_) return false;
  }
  return OwnerCaptures();
}

std::shared_ptr<Capture> Stream::CurrentCapture() {
  std::lock_guard lock(mutex_);
  return capture_;
}

MaybeFailure Stream::BeginPlan() {
  std::lock_guard lock(mutex_);
  if (closed_) return Closed();
  if (capture_ != nullptr) return Misused("a plan cannot be made inside a capture");
  if (plan_ != nullptr) return Misused("a plan cannot be made inside another one");
  plan_ = std::make_unique<Plan>();
  plan_->device = device_;
  return std::nullopt;
}

MaybeFailure Stream::EndPlan(Plan* plan) {
  std::lock_guard lock(mutex_);
  if (plan_ == nullptr) return Misused("the stream did not begin a plan");
  *plan = std::move(*plan_);
  plan_.reset();
  return std::nullopt;
}

MaybeFailure Stream::Launch(const Plan& plan) {
  if (plan.device != device_)
    return Failure{"ERR_MOE_EP_ARGUMENT", "the plan was made on another device"};
  for (const CommandPtr& command : plan.commands) {
    if (!Enqueue(command)) return Closed();
  }
  return std::nullopt;
}

bool Stream::MarkClosed() {
  std::lock_guard lock(mutex_);
  return !std::exchange(closed_, true);
}

bool Stream::closed() {
  std::lock_guard lock(mutex_);
  return closed_;
}

}  // namespace moe_ep
