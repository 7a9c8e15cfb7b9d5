// A recorded list of commands. Commands of all streams that joined a capture stand in the order in which they were
// enqueued, which is one valid order of the graph and the same on every rank.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "cpu/command.h"

namespace moe_ep {

class Stream;
class Event;

class Capture {
 public:
  explicit Capture(Stream* origin) : origin_(origin) {}

  Stream* origin() const { return origin_; }
  void Append(Stream* stream, CommandPtr command);
  void Join(Stream* stream) { joined_.insert(stream); }
  const std::set<Stream*>& joined() const { return joined_; }
  void Recorded(const std::shared_ptr<Event>& event, Stream* stream);
  void Waited(const std::shared_ptr<Event>& event);
  // Whether every joined stream's last work is waited for by another one.
  bool AllJoinedBack() const { return dirty_.empty(); }
  const std::set<std::shared_ptr<Event>>& events() const { return events_; }
  std::vector<CommandPtr> TakeCommands() { return std::move(commands_); }

 private:
  Stream* const origin_;
  std::vector<CommandPtr> commands_;
  std::set<Stream*> joined_;
  std::set<Stream*> dirty_;
  std::set<std::shared_ptr<Event>> events_;
  std::vector<std::pair<const Event*, Stream*>> recordings_;
};

struct Graph {
  std::vector<CommandPtr> commands;
};

}  // namespace moe_ep
