// A recorded list of commands. Commands of all streams that joined a capture stand in the order in
// which they were enqueued, which is one valid order of the graph and the same on every rank.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "cpu/command.h"
#include "cpu/event.h"

namespace moe_ep {

class Stream;

struct Graph {
  // Either a command, or an event that is recorded here.
  struct Step {
    CommandPtr command;
    std::shared_ptr<Event> event;
  };
  std::vector<Step> steps;
};

class Capture {
 public:
  explicit Capture(const Stream* origin) : origin_(origin) {}

  void Join(std::shared_ptr<Stream> stream) { joined_.insert(std::move(stream)); }
  const std::set<std::shared_ptr<Stream>>& joined() const { return joined_; }

  void Append(const Stream* stream, CommandPtr command);
  void Record(const Stream* stream, const std::shared_ptr<Event>& event);
  // `event` was recorded in this capture.
  void Wait(const Stream* stream, const std::shared_ptr<Event>& event);

  // Whether the origin waited, directly or through others, for all work of all streams.
  bool AllJoinedBack();
  std::vector<Graph::Step> TakeSteps() { return std::move(steps_); }

 private:
  // How much of each stream's work is known to lie before a point.
  using Clock = std::map<const Stream*, uint64_t>;

  const Stream* const origin_;
  std::vector<Graph::Step> steps_;
  std::set<std::shared_ptr<Stream>> joined_;
  std::map<const Stream*, Clock> clocks_;
  std::map<const Event*, Clock> recordings_;
};

}  // namespace moe_ep
