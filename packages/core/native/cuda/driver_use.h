// The end of the process: its exit handlers take the CUDA runtime down while native threads run on.
#pragma once

namespace moe_ep::cuda {

// Around what native threads do with the runtime, the driver or memory of theirs. Never made again
// once the process runs its exit handlers: the thread then sleeps until the process is gone. Not
// around waits for work of the device: the exit handlers wait until no thread is in one. May be
// nested.
class DriverUse {
 public:
  DriverUse();
  ~DriverUse();
  DriverUse(const DriverUse&) = delete;
  DriverUse& operator=(const DriverUse&) = delete;
};

// Called when the runtime is up: exit handlers run in reverse order, and this one must run before
// the runtime's own.
void EndDriverUseAtExit();

}  // namespace moe_ep::cuda
