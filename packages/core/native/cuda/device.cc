#include "cuda/device.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "cuda/driver_use.h"
#include "moe_ep/cuda/check.h"
#include "moe_ep/cuda/launch.h"
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
namespace {

constexpr uint64_t kSegmentBytes = uint64_t{64} << 20;
constexpr uint64_t kPinnedSegmentBytes = uint64_t{4} << 20;
// Retired things that wait for a look at the device.
constexpr size_t kPendingLimit = 64;
constexpr int64_t kBaseAge = 200'000'000;  // ns

int64_t HostNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Probe AskDriver() {
  // Loading kernels at first use may wait for kernels that run, which may wait for one another.
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  // Streams that share a hardware queue wait for one another, which must not be where one of them
  // waits for a peer.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return {count, count == 0 ? "the driver shows no GPU" : ""};
  cudaGetLastError();
  switch (status) {
    case cudaErrorStubLibrary:
    case cudaErrorInsufficientDriver:
      return {0, "there is no NVIDIA driver, or one older than this build's CUDA"};
    case cudaErrorNoDevice:
      return {0, "the driver shows no GPU"};
    default:
      return {0, std::string("the driver does not work: ") + cudaGetErrorName(status)};
  }
}

// Whether one of the architectures this addon was built for ("90a-real,100a-real") runs on a
// capability. The "a" targets run on their own capability only.
bool BuiltFor(int capability) {
  const std::string built = std::string(MOE_EP_CUDA_ARCHITECTURES) + ",";
  const std::string wanted = std::to_string(capability);
  for (size_t begin = 0, end; (end = built.find(',', begin)) != std::string::npos;
       begin = end + 1) {
    const std::string architecture = built.substr(begin, end - begin);
    if (architecture.starts_with(wanted)) return true;
  }
  return false;
}

std::string TextOf(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    const auto byte = static_cast<uint8_t>(uuid.bytes[i]);
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

enum class Passage { kPassed, kAhead, kUnknown };

Passage PassageOf(const EventPtr& marker) {
  const cudaError_t status = cudaEventQuery(marker.get());
  cudaGetLastError();
  // It became part of somebody's capture between two looks at its stream, and will never tell.
  if (status == cudaErrorCapturedEvent) return Passage::kUnknown;
  // During a capture there may be no answer. Where the device has failed nothing runs any more.
  const bool later =
      status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread;
  return status == cudaErrorNotReady || later ? Passage::kAhead : Passage::kPassed;
}

bool Passed(const EventPtr& marker) { return PassageOf(marker) != Passage::kAhead; }

}  // namespace

const Probe& ProbeDevices() {
  static const Probe probe = AskDriver();
  return probe;
}

Properties PropertiesOf(int ordinal) {
  cudaDeviceProp p;
  Check(cudaGetDeviceProperties(&p, ordinal), "cudaGetDeviceProperties");
  Properties properties = {
      p.name, TextOf(p.uuid), p.totalGlobalMem, p.multiProcessorCount, p.major * 10 + p.minor, ""};
  if (!BuiltFor(properties.capability)) {
    properties.unavailable = "this build has code for " + std::string(MOE_EP_CUDA_ARCHITECTURES) +
                             ", " + properties.name + " is of compute capability " +
                             std::to_string(p.major) + "." + std::to_string(p.minor) +
                             "; build with CUDAARCHS";
  }
  return properties;
}

Device& Device::Get(int ordinal) {
  // Never destroyed: at the end of the process the driver may be gone before statics are.
  static std::array<Device*, kMaxDevices> devices{};
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  if (devices.at(ordinal) == nullptr) devices[ordinal] = new Device(ordinal);
  return *devices[ordinal];
}

Device::Device(int ordinal)
    : ordinal_(ordinal),
      memory_(
          [](uint64_t bytes) -> void* {
            void* segment = nullptr;
            if (cudaMalloc(&segment, bytes) == cudaSuccess) return segment;
            cudaGetLastError();
            return nullptr;
          },
          [](void* segment) { cudaFree(segment); }, kSegmentBytes),
      pinned_(
          [](uint64_t bytes) -> void* {
            void* segment = nullptr;
            const unsigned flags = cudaHostAllocPortable | cudaHostAllocMapped;
            if (cudaHostAlloc(&segment, bytes, flags) == cudaSuccess) return segment;
            cudaGetLastError();
            return nullptr;
          },
          [](void* segment) { cudaFreeHost(segment); }, kPinnedSegmentBytes) {
  MakeCurrent();
  int least = 0;
  int greatest = 0;
  size_t free_bytes = 0;
  Check(cudaMemGetInfo(&free_bytes, &total_bytes_), "cudaMemGetInfo");
  Check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  Check(cudaStreamCreateWithPriority(&auxiliary_, cudaStreamNonBlocking, greatest),
        "cudaStreamCreate");
  Base base = {NewEvent(), 0, 0};
  Check(cudaEventRecord(base.event.get(), auxiliary_), "cudaEventRecord");
  Check(cudaStreamSynchronize(auxiliary_), "cudaStreamSynchronize");
  base.recorded_at = base.time = HostNanoseconds();
  bases_.push_back(std::move(base));
  EndDriverUseAtExit();
}

void Device::MakeCurrent() const noexcept { cudaSetDevice(ordinal_); }

uint64_t Device::FreeBytes() const {
  MakeCurrent();
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  Check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return free_bytes;
}

template <typename Attempt>
void* Device::AllocateOrMakeRoom(Attempt allocate) {
  MakeCurrent();
  if (void* memory = allocate()) return memory;
  // What was given back may only wait for the device: that is worth waiting for, once.
  Poll();
  // Graphs hold commands, which hold tensors, which hold memory: each gives back the next.
  for (int round = 0; round < 4; ++round) {
    Seal();
    Check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    if (!ReleaseDone()) break;
  }
  Poll();
  if (void* memory = allocate()) return memory;
  memory_.Trim();
  pinned_.Trim();
  if (void* memory = allocate()) return memory;
  throw std::bad_alloc();
}

void* Device::Allocate(uint64_t bytes) {
  if (bytes > total_bytes_) throw std::bad_alloc();
  Poll();
  return AllocateOrMakeRoom([&] { return memory_.Allocate(bytes); });
}

void* Device::AllocateZeroed(uint64_t bytes) {
  void* memory = Allocate(bytes);
  Check(cudaMemsetAsync(memory, 0, bytes, auxiliary_), "cudaMemsetAsync");
  Check(cudaStreamSynchronize(auxiliary_), "cudaStreamSynchronize");
  return memory;
}

void* Device::AllocatePinned(uint64_t bytes) {
  // Where nothing else is allocated or awaited, somebody must look what can go: growing may wait
  // for kernels that run.
  if (pinned_allocations_.fetch_add(1, std::memory_order_relaxed) % kPendingLimit == 0) Poll();
  return AllocateOrMakeRoom([&] { return pinned_.Allocate(bytes); });
}

EventPtr Device::NewEvent() {
  cudaEvent_t event = nullptr;
  {
    std::lock_guard lock(events_mutex_);
    if (!free_events_.empty()) {
      event = free_events_.back();
      free_events_.pop_back();
    }
  }
  if (event == nullptr) {
    MakeCurrent();
    Check(cudaEventCreate(&event), "cudaEventCreate");
  }
  return EventPtr(event, [this](cudaEvent_t done) {
    std::lock_guard lock(events_mutex_);
    free_events_.push_back(done);
  });
}

void Device::Add(Submitter& submitter) {
  std::lock_guard lock(submitters_mutex_);
  submitters_.insert(&submitter);
}

void Device::Remove(Submitter& submitter, EventPtr last) {
  std::lock_guard lock(submitters_mutex_);
  submitters_.erase(&submitter);
  if (last != nullptr) last_markers_.push_back(std::move(last));
}

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
  std::lock_guard lock(mutex_);
  batches_.push_back({std::move(markers), std::move(releases)});
}

size_t Device::Pending() {
  std::lock_guard lock(mutex_);
  return pending_.size();
}

void Device::Poll() {
  MakeCurrent();
  const RelaxedCaptures relaxed;
  bool seal = false;
  {
    std::lock_guard lock(mutex_);
    seal = batches_.empty() || pending_.size() >= kPendingLimit;
  }
  if (seal) Seal();
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
      std::lock_guard lock(mutex_);
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

size_t Device::CurrentBase() {
  std::lock_guard lock(times_mutex_);
  const int64_t now = HostNanoseconds();
  if (now - bases_.back().recorded_at > kBaseAge) {
    Base base = {NewEvent(), now, 0};
    if (cudaEventRecord(base.event.get(), auxiliary_) == cudaSuccess)
      bases_.push_back(std::move(base));
  }
  return bases_.size() - 1;
}

int64_t Device::TimeOf(cudaEvent_t event, size_t base) {
  std::lock_guard lock(times_mutex_);
  float milliseconds = 0;
  size_t known = base;
  while (bases_[known].time == 0) --known;
  for (; known < base; ++known) {
    Base& next = bases_[known + 1];
    Check(cudaEventSynchronize(next.event.get()), "cudaEventSynchronize");
    Check(cudaEventElapsedTime(&milliseconds, bases_[known].event.get(), next.event.get()),
          "cudaEventElapsedTime");
    next.time = bases_[known].time + static_cast<int64_t>(milliseconds * 1e6);
  }
  Check(cudaEventElapsedTime(&milliseconds, bases_[base].event.get(), event),
        "cudaEventElapsedTime");
  return bases_[base].time + static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6);
}

}  // namespace cuda
}  // namespace moe_ep
