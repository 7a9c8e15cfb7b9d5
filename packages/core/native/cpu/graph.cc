#include "cpu/graph.h"

#include <utility>

#include "cpu/event.h"

namespace moe_ep {

void Capture::Append(Stream* stream, CommandPtr command) {
  commands_.push_back(std::move(command));
  if (stream != origin_) dirty_.insert(stream);
}

void Capture::Recorded(const std::shared_ptr<Event>& event, Stream* stream) {
  events_.insert(event);
  recordings_.emplace_back(event.get(), stream);
}

void Capture::Waited(const std::shared_ptr<Event>& event) {
  for (auto recording = recordings_.rbegin(); recording != recordings_.rend(); ++recording) {
    if (recording->first != event.get()) continue;
    dirty_.erase(recording->second);
    return;
  }
}

}  // namespace moe_ep
