// A point in the work of a cuda stream.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "cuda/device.h"
#include "moe_ep/abi.h"
#include "runtime/recording.h"

namespace moe_ep::cuda {

// Host memory that device code reads and writes, from the device's pool and back to it once the
// device is done.
template <typename T>
std::shared_ptr<T> NewPinned(Device& device) {
  T* value = new (device.AllocatePinned(sizeof(T))) T{};
  return std::shared_ptr<T>(
      value, [&device](T* done) { device.Retire([&device, done] { device.FreePinned(done); }); });
}

// Set when a stream is aborted; its kernels and those who wait for it look.
using AbortWord = std::shared_ptr<uint32_t>;
using AbortWords = std::set<AbortWord>;
// Whether one of them is set.
bool AnyAborted(const AbortWords& words);
Failure AbortFailure();

class CompletionThread;

class CudaRecording final : public Recording {
 public:
  struct Parts {
    Device* device;
    EventPtr time;  // when the point was reached
    size_t base;    // of that time; see Device::TimeOf
    EventPtr done;  // everything that belongs to the point is there
    std::shared_ptr<moe_ep_failure_record> failure;  // the stream's at the point; null: none
    AbortWords aborts;                               // of the stream and of those it waited for
    std::shared_ptr<CompletionThread> completions;
  };
  explicit CudaRecording(Parts parts) : parts_(std::move(parts)) {}

  const Parts& parts() const { return parts_; }

  MaybeFailure Wait(const uint32_t* abort) override;
  void WhenComplete(std::function<void(MaybeFailure)> then) override;
  bool completed() override;
  int64_t completed_at() override;

 private:
  const Parts parts_;
};

}  // namespace moe_ep::cuda
