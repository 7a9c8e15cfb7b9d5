// In place of cuda/ where core is built without CUDA.
#include "runtime/device_work.h"

namespace moe_ep {

void RunWhenDeviceIsDone(int, std::function<void()> then) { then(); }

void RunWhenDeviceIsIdle(int, std::function<void()> then) { then(); }

void LookWhatIsDone(int) {}

}  // namespace moe_ep
