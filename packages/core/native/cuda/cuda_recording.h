// A point in the work of a cuda stream.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
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

// Who may still be waiting for a stream, so that an abort reaches them.
class Dependent {
 public:
  virtual ~Dependent() = default;
  // What it waited for was aborted: nothing that it has queued may run.
  virtual void Skip() = 0;
};

// The abort of one stream: a word that its kernels look at, and those who wait for it.
class Abort {
 public:
  explicit Abort(Device& device) : word_(NewPinned<uint32_t>(device)) {}

  const uint32_t* word() const { return word_.get(); }
  bool set() const { return __atomic_load_n(word_.get(), __ATOMIC_ACQUIRE) != 0; }
  // First tells those who still wait, so that they skip their work when the wait ends.
  void Set();
  void AddDependent(std::weak_ptr<Dependent> dependent, EventPtr awaited);

 private:
  struct Wait {
    std::weak_ptr<Dependent> dependent;
    EventPtr awaited;
  };
  void DropFinished();

  const std::shared_ptr<uint32_t> word_;
  std::mutex mutex_;
  std::vector<Wait> waits_;
  size_t drop_at_ = 64;
};
using AbortPtr = std::shared_ptr<Abort>;
using Aborts = std::set<AbortPtr>;
// Whether one of them is set.
bool AnyAborted(const Aborts& aborts);
Failure AbortFailure();

class CompletionThread;

class CudaRecording final : public Recording {
 public:
  struct Parts {
    Device* device;
    const Abort* stream;  // tells streams apart
    uint64_t takes;       // how often the stream's failure had been taken
    EventPtr time;        // when the point was reached
    size_t base;          // of that time; see Device::TimeOf
    EventPtr done;        // everything that belongs to the point is there
    EventPtr join;        // in a capture by the stream's owner: what that knows it by, else null
    unsigned long long capture;                      // its id, and
    std::function<bool()> captured;                  // whether it goes on; null where it was none
    std::shared_ptr<moe_ep_failure_record> failure;  // the stream's at the point; null: none
    Aborts aborts;                                   // of the stream and of those it waited for
    std::shared_ptr<CompletionThread> completions;
  };
  explicit CudaRecording(Parts parts) : parts_(std::move(parts)) {}

  const Parts& parts() const { return parts_; }

  MaybeFailure Wait(const uint32_t* abort) override;
  void WhenComplete(std::function<void(MaybeFailure)> then) override;
  bool completed() override;
  std::shared_ptr<Recording> AsOfNow() override;  // throws
  bool captured() override { return parts_.captured != nullptr && parts_.captured(); }
  int64_t completed_at() override;

 private:
  const Parts parts_;
};

}  // namespace moe_ep::cuda
