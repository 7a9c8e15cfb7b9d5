// Names a point in a stream's work, and moves to a new one with each recording.
//
// Inside a capture the event is only noted: it moves when the graph is launched, anew each time.
// Only the JavaScript thread that owns the event uses it; native threads see recordings.
#pragma once

#include <memory>
#include <utility>

#include "runtime/recording.h"

namespace moe_ep {

class Capture;

class Event {
 public:
  // Null before the first.
  const std::shared_ptr<Recording>& newest() const { return newest_; }
  void MoveTo(std::shared_ptr<Recording> recording) {
    newest_ = std::move(recording);
    capture_.reset();
  }

  // The running capture that noted the event last, if it did so after the newest recording.
  std::shared_ptr<Capture> capture() const { return capture_.lock(); }
  void NoteIn(const std::shared_ptr<Capture>& capture) { capture_ = capture; }

 private:
  std::shared_ptr<Recording> newest_;
  std::weak_ptr<Capture> capture_;
};

}  // namespace moe_ep
