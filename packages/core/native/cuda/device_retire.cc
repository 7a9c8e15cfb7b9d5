// What is given back to a device waits here until all work that may use it is done.
#include <algorithm>
#include <iterator>
#include <utility>

#include "cuda/device.h"
#include "runtime/device_work.h"

namespace moe_ep {

void RunWhenDeviceIsDone(int device, std::function<void()> then) {
  cuda::Device::Get(device).Retire(std::move(then));
}

void RunWhenDeviceIsIdle(int device, std::function<void()> then) {
  cuda::Device::Get(device).RetireWhenIdle(std::move(then));
}

void LookWhatIsDone(int device) { cuda::Device::Get(device).Poll(); }

namespace cuda {

bool IsOfCapture(cudaError_t status) {
  return status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread;
}

Passage PassageOf(const EventPtr& marker) {
  const cudaError_t status = cudaEventQuery(marker.get());
  cudaGetLastError();
  // It became part of somebody's capture between two looks at its stream, and will never tell.
  if (status == cudaErrorCapturedEvent) return Passage::kUnknown;
  // During a capture there may be no answer. Where the device has failed nothing runs any more.
  return status == cudaErrorNotReady || IsOfCapture(status) ? Passage::kAhead : Passage::kPassed;
}

namespace {

bool Passed(const EventPtr& marker) { return PassageOf(marker) != Passage::kAhead; }

}  // namespace

void Device::Retire(std::function<void()> then) {
  std::lock_guard lock(mutex_);
  pending_.push_back(std::move(then));
}

void Device::RetireWhenIdle(std::function<void()> then) {
  std::lock_guard lock(mutex_);
  when_idle_.push_back(std::move(then));
}

// The present ends of all streams; false where one cannot tell.
bool Device::Markers(std::vector<EventPtr>* markers) {
  std::lock_guard lock(submitters_mutex_);
  const uint64_t submitted = auxiliary_submitted_.load(std::memory_order_acquire);
  if (submitted != auxiliary_marked_) {
    EventPtr marker = NewEvent();
    const cudaError_t status = cudaEventRecord(marker.get(), auxiliary_);
    cudaGetLastError();
    if (status != cudaSuccess) return false;
    auxiliary_marker_ = std::move(marker);
    auxiliary_marked_ = submitted;
  }
  std::erase_if(last_markers_, Passed);
  *markers = last_markers_;
  if (auxiliary_marker_ != nullptr && Passed(auxiliary_marker_)) auxiliary_marker_ = nullptr;
  if (auxiliary_marker_ != nullptr) markers->push_back(auxiliary_marker_);
  for (Submitter* const submitter : submitters_) {
    EventPtr marker;
    if (!submitter->Marker(&marker)) return false;
    if (marker != nullptr) markers->push_back(std::move(marker));
  }
  return true;
}

// They wait for the next time.
void Device::PutBack(std::vector<std::function<void()>> releases) {
  std::lock_guard lock(mutex_);
  pending_.insert(pending_.begin(), std::make_move_iterator(releases.begin()),
                  std::make_move_iterator(releases.end()));
}

// What is pending becomes a batch that goes when every stream has passed its present end.
void Device::Seal() {
  std::vector<std::function<void()>> releases;
  {
    std::lock_guard lock(mutex_);
    if (pending_.empty()) return;
    releases.swap(pending_);
  }
  std::vector<EventPtr> markers;
  try {
    if (!Markers(&markers)) return PutBack(std::move(releases));
  } catch (...) {
    PutBack(std::move(releases));
    throw;
  }
  std::lock_guard lock(batches_mutex_);
  batches_.push_back({std::move(markers), std::move(releases)});
}

size_t Device::Pending() {
  std::lock_guard lock(mutex_);
  return pending_.size();
}

void Device::Poll() {
  MakeCurrent();
  const RelaxedCaptures relaxed;
  bool none = false;
  {
    std::lock_guard lock(batches_mutex_);
    none = batches_.empty();
  }
  if (none || Pending() >= kPendingLimit) Seal();
  const size_t pending = Pending();
  // What goes may give back what it held itself: that need not wait for the next look.
  if (ReleaseDone() && Pending() > pending) Seal();
  ReleaseIdle();
}

bool Device::Idle() {
  std::lock_guard lock(submitters_mutex_);
  std::erase_if(last_markers_, Passed);
  if (!last_markers_.empty()) return false;
  return std::none_of(submitters_.begin(), submitters_.end(),
                      [](Submitter* submitter) { return submitter->Busy(); });
}

bool Device::AnyCaptured() {
  std::lock_guard lock(submitters_mutex_);
  return std::any_of(submitters_.begin(), submitters_.end(),
                     [](Submitter* submitter) { return submitter->Captured(); });
}

void Device::BeginLaunch() {
  std::unique_lock lock(launches_mutex_);
  released_.wait(lock, [this] { return !releasing_; });
  ++launching_;
}

void Device::EndLaunch() {
  std::lock_guard lock(launches_mutex_);
  --launching_;
}

void Device::ReleaseIdle() {
  {
    std::lock_guard lock(mutex_);
    if (when_idle_.empty()) return;
  }
  {
    std::lock_guard lock(launches_mutex_);
    if (launching_ > 0 || releasing_) return;
    releasing_ = true;
  }
  struct Gate {
    Device& device;
    ~Gate() {
      {
        std::lock_guard lock(device.launches_mutex_);
        device.releasing_ = false;
      }
      device.released_.notify_all();
    }
  };
  const Gate gate{*this};
  std::vector<std::function<void()>> releases;
  if (Idle()) {
    std::lock_guard lock(mutex_);
    releases.swap(when_idle_);
  }
  for (const auto& release : releases) release();
}

// Whether something was released.
bool Device::ReleaseDone() {
  for (bool released = false;; released = true) {
    Batch done;
    bool unknown = false;
    {
      std::lock_guard lock(batches_mutex_);
      if (batches_.empty()) return released;
      std::erase_if(batches_.front().markers, [&](const EventPtr& marker) {
        const Passage passage = PassageOf(marker);
        unknown = unknown || passage == Passage::kUnknown;
        return passage == Passage::kPassed;
      });
      if (!unknown && !batches_.front().markers.empty()) return released;
      done = std::move(batches_.front());
      batches_.pop_front();
    }
    if (unknown) {
      PutBack(std::move(done.releases));
      return released;
    }
    for (const auto& release : done.releases) release();
  }
}

}  // namespace cuda
}  // namespace moe_ep
