// A unit of work that streams run and graphs replay.
#pragma once

#include <functional>
#include <memory>

#include "moe_ep/abi.h"

namespace moe_ep {

struct Command {
  enum class Kind {
    kWork,    // skipped while the stream is in failure
    kMarker,  // always runs: events and completions must not hang because work before them failed
  };

  explicit Command(moe_ep_command command) : foreign(command) {}
  Command(Kind kind, std::function<void(moe_ep_exec*)> function)
      : kind(kind), function(std::move(function)) {}
  ~Command() {
    if (foreign.destroy != nullptr) foreign.destroy(foreign.self);
  }
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;

  void Run(moe_ep_exec* exec) const {
    if (foreign.run != nullptr) {
      foreign.run(foreign.self, exec);
    } else {
      function(exec);
    }
  }

  const Kind kind = Kind::kWork;
  const moe_ep_command foreign = {nullptr, nullptr, nullptr};
  const std::function<void(moe_ep_exec*)> function;
};

using CommandPtr = std::shared_ptr<const Command>;

}  // namespace moe_ep
