// Recorded work. Commands of all streams that joined a capture stand in the order in which they
// were enqueued, which is one valid order of the graph and the same on every rank.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "runtime/command.h"
#include "runtime/event.h"

namespace moe_ep {

class Stream;

// What a device makes of a captured list, where it makes something of it.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Kernels, copies and fills that were recorded.
  virtual size_t operations() const = 0;
};

struct Graph {
  // Either a command, or an event that is recorded here.
  struct Step {
    CommandPtr command;
    std::shared_ptr<Event> event;
  };
  int device = -1;  // of the streams that were captured; -1: cpu
  std::vector<Step> steps;
  // After the steps, so that it goes first: it uses what they hold.
  std::shared_ptr<DeviceGraph> device_graph;
};

// Commands whose arguments are checked and packed, to be enqueued again and again.
struct Plan {
  int device = -1;
  std::vector<CommandPtr> commands;
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

  // What the origin's device keeps for the capture; see DeviceGraph.
  std::shared_ptr<DeviceGraph> device_graph;

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
