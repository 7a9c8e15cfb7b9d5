#include "cuda/device.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <utility>

#include "cuda/driver_use.h"
#include "moe_ep/cuda/check.h"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kSegmentBytes = uint64_t{64} << 20;
constexpr uint64_t kPinnedSegmentBytes = uint64_t{4} << 20;
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
  const RelaxedCaptures relaxed;
  int least = 0;
  int greatest = 0;
  size_t free_bytes = 0;
  Check(cudaMemGetInfo(&free_bytes, &total_bytes_), "cudaMemGetInfo");
  Check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  Check(cudaStreamCreateWithPriority(&auxiliary_, cudaStreamNonBlocking, greatest),
        "cudaStreamCreate");
  // The host may be late to look at its clock, on a busy machine by milliseconds: of some tries the
  // shortest.
  Base base = {};
  int64_t shortest = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < 8; ++i) {
    EventPtr event = NewEvent();
    const int64_t begin = HostNanoseconds();
    Check(cudaEventRecord(event.get(), auxiliary_), "cudaEventRecord");
    Check(cudaStreamSynchronize(auxiliary_), "cudaStreamSynchronize");
    const int64_t end = HostNanoseconds();
    if (end - begin >= shortest) continue;
    shortest = end - begin;
    base = {std::move(event), end, end};
  }
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
  const RelaxedCaptures relaxed;
  if (void* memory = allocate()) return memory;
  // What was given back may only wait for the device: that is worth waiting for, once.
  Poll();
  // Graphs hold commands, which hold tensors, which hold memory: each gives back the next. To wait
  // for the device would end a capture, and fails where others capture what is not known here.
  for (int round = 0; round < 4 && !AnyCaptured(); ++round) {
    Seal();
    const cudaError_t status = cudaDeviceSynchronize();
    if (status != cudaSuccess) cudaGetLastError();
    if (IsOfCapture(status)) break;
    Check(status, "cudaDeviceSynchronize");
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
  const RelaxedCaptures relaxed;
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

}  // namespace moe_ep::cuda
