// One CUDA device: its memory, the events that streams use, and the rule by which memory is given
// back: when all work that was enqueued before is done.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cuda/arena.h"

namespace moe_ep::cuda {

// An event of the runtime, from the device's pool and back to it.
using EventPtr = std::shared_ptr<CUevent_st>;

// Whether a call failed because somebody captures.
bool IsOfCapture(cudaError_t status);

// Whether work behind which an event was recorded is done. Unknown: never to be told, for
// somebody's capture has taken the event in.
enum class Passage { kPassed, kAhead, kUnknown };
Passage PassageOf(const EventPtr& marker);

// Whoever enqueues work on the device.
class Submitter {
 public:
  virtual ~Submitter() = default;
  // An event behind all work enqueued so far; null when there was none. False where nobody can tell
  // now, because somebody captures.
  virtual bool Marker(EventPtr* marker) = 0;
  // Whether something of it may be running.
  virtual bool Busy() = 0;
  // Whether somebody captures it.
  virtual bool Captured() = 0;
};

// What the driver says: `count` devices, or why there are none.
struct Probe {
  int count;
  std::string reason;
};
const Probe& ProbeDevices();

struct Properties {
  std::string name;
  std::string uuid;  // as nvidia-smi writes it
  uint64_t memory_bytes;
  int multiprocessors;
  int capability;           // 90 for 9.0
  std::string unavailable;  // why this build cannot use it; empty when it can
};
Properties PropertiesOf(int ordinal);

// While somebody captures, a thread that makes memory, asks for events or waits would end that
// capture. While one of these lives its thread does not.
class RelaxedCaptures {
 public:
  RelaxedCaptures() : exchanged_(cudaThreadExchangeStreamCaptureMode(&mode_) == cudaSuccess) {}
  ~RelaxedCaptures() {
    if (exchanged_) cudaThreadExchangeStreamCaptureMode(&mode_);
  }
  RelaxedCaptures(const RelaxedCaptures&) = delete;
  RelaxedCaptures& operator=(const RelaxedCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  const bool exchanged_;
};

class Device {
 public:
  // A device that ProbeDevices() counts. Lives as long as the process. Throws.
  static Device& Get(int ordinal);

  int ordinal() const { return ordinal_; }
  // For the calling thread. Where that fails the next call tells.
  void MakeCurrent() const noexcept;
  // A stream for short work of the library itself, past the work of others.
  cudaStream_t auxiliary() const { return auxiliary_; }
  // After work on it that nobody waits for: what is given back waits for that, too.
  void CountAuxiliary() { auxiliary_submitted_.fetch_add(1, std::memory_order_release); }

  // Not zeroed; throws std::bad_alloc.
  void* Allocate(uint64_t bytes);
  // Zeroed when this returns.
  void* AllocateZeroed(uint64_t bytes);
  void* AllocatePinned(uint64_t bytes);
  // Both at once: call them through Retire where work may use the memory.
  void Free(void* memory) { memory_.Free(memory); }
  void FreePinned(void* memory) { pinned_.Free(memory); }
  Arena::Use memory_use() { return memory_.use(); }
  // What the driver has left, for this process and all others. Throws.
  uint64_t FreeBytes() const;

  EventPtr NewEvent();

  // Calls `then` once all work that was enqueued so far is done; on any thread that uses the
  // device.
  void Retire(std::function<void()> then);
  // Calls `then` at a moment when nothing runs on the device and nothing can be launched. For what
  // makes the driver wait for all that runs (unregistering, unmapping, freeing) and keep others
  // from launching meanwhile: kernels that wait for one that is still to be launched would never
  // end.
  void RetireWhenIdle(std::function<void()> then);
  // Around everything that puts work on a stream.
  void BeginLaunch();
  void EndLaunch();
  // Looks whether retired things can go. Not while locks of streams are held.
  void Poll();

  // Between these two calls its work is waited for.
  void Add(Submitter& submitter);
  // `last`, unless null, is an event behind work that may still be running.
  void Remove(Submitter& submitter, EventPtr last);

  // The host's monotonic nanoseconds at which a completed event was reached. `base` is what
  // CurrentBase() gave when it was recorded.
  size_t CurrentBase();
  int64_t TimeOf(cudaEvent_t event, size_t base);

 private:
  // Retired things that wait for a look at the device.
  static constexpr size_t kPendingLimit = 64;

  explicit Device(int ordinal);
  template <typename Attempt>
  void* AllocateOrMakeRoom(Attempt allocate);
  void Seal();
  bool Markers(std::vector<EventPtr>* markers);
  void PutBack(std::vector<std::function<void()>> releases);
  size_t Pending();
  bool ReleaseDone();
  void ReleaseIdle();
  bool Idle();
  bool AnyCaptured();

  struct Batch {
    std::vector<EventPtr> markers;
    std::vector<std::function<void()>> releases;
  };
  // A point of known time from which others are measured: differences of events are exact only when
  // they are short.
  struct Base {
    EventPtr event;
    int64_t recorded_at;  // host's clock, about
    int64_t time;         // 0: not known yet
  };

  const int ordinal_;
  cudaStream_t auxiliary_ = nullptr;
  size_t total_bytes_ = 0;
  Arena memory_;
  Arena pinned_;
  std::atomic<uint64_t> pinned_allocations_ = 0;
  std::atomic<uint64_t> auxiliary_submitted_ = 0;

  std::mutex submitters_mutex_;  // held while they are asked, so that none goes meanwhile
  std::set<Submitter*> submitters_;
  std::vector<EventPtr> last_markers_;  // of those that are gone
  uint64_t auxiliary_marked_ = 0;
  EventPtr auxiliary_marker_;

  // Never held while the driver is called: its own threads come here, too.
  std::mutex mutex_;
  std::vector<std::function<void()>> pending_;
  std::vector<std::function<void()>> when_idle_;

  std::mutex batches_mutex_;  // held while their markers are asked
  std::deque<Batch> batches_;

  std::mutex launches_mutex_;
  std::condition_variable released_;
  int launching_ = 0;  // threads between BeginLaunch and EndLaunch
  bool releasing_ = false;

  std::mutex events_mutex_;
  std::vector<cudaEvent_t> free_events_;

  std::mutex times_mutex_;
  std::deque<Base> bases_;
};

}  // namespace moe_ep::cuda
