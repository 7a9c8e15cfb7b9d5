// What device-neutral code asks of the cuda devices. A build without CUDA has no such devices and
// never calls it.
#pragma once

#include <functional>

namespace moe_ep {

// Calls `then`, on any thread, once all work that was enqueued on the CUDA device so far is done.
void RunWhenDeviceIsDone(int device, std::function<void()> then);

// Calls `then`, on any thread, at a moment when nothing runs on the CUDA device.
void RunWhenDeviceIsIdle(int device, std::function<void()> then);

// Looks now whether something of that can be called.
void LookWhatIsDone(int device);

}  // namespace moe_ep
