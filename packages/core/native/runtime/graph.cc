#include "runtime/graph.h"

#include <algorithm>
#include <utility>

namespace moe_ep {

void Capture::Append(const Stream* stream, CommandPtr command) {
  steps_.push_back({std::move(command), nullptr});
  ++clocks_[stream][stream];
}

void Capture::Record(const Stream* stream, const std::shared_ptr<Event>& event) {
  steps_.push_back({nullptr, event});
  recordings_[event.get()] = clocks_[stream];
}

// The linear order of the list is the dependency: nothing needs to wait at replay.
void Capture::Wait(const Stream* stream, const std::shared_ptr<Event>& event) {
  Clock& clock = clocks_[stream];
  for (const auto& [other, count] : recordings_[event.get()]) {
    clock[other] = std::max(clock[other], count);
  }
}

bool Capture::AllJoinedBack() {
  Clock& end = clocks_[origin_];
  return std::all_of(clocks_.begin(), clocks_.end(), [&](const auto& entry) {
    const auto own = entry.second.find(entry.first);
    return own == entry.second.end() || end[entry.first] >= own->second;
  });
}

}  // namespace moe_ep
