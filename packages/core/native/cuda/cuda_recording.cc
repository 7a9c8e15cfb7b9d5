#include "cuda/cuda_recording.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "cuda/completion_thread.h"
#include "cuda/driver_use.h"
#include "cuda/host_failures.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

void Abort::Set() {
  std::vector<Wait> waits;
  {
    std::lock_guard lock(mutex_);
    DropFinished();
    waits.swap(waits_);
  }
  for (const Wait& wait : waits) {
    if (const auto dependent = wait.dependent.lock()) dependent->Skip();
  }
  __atomic_store_n(word_.get(), 1u, __ATOMIC_RELEASE);
}

void Abort::AddDependent(std::weak_ptr<Dependent> dependent, EventPtr awaited) {
  std::lock_guard lock(mutex_);
  waits_.push_back({std::move(dependent), std::move(awaited)});
  if (waits_.size() < drop_at_) return;
  DropFinished();
  drop_at_ = std::max<size_t>(64, 2 * waits_.size());
}

void Abort::DropFinished() {
  const RelaxedCaptures relaxed;
  std::erase_if(waits_, [](const Wait& wait) {
    const bool finished = cudaEventQuery(wait.awaited.get()) != cudaErrorNotReady;
    cudaGetLastError();
    return finished || wait.dependent.expired();
  });
}

bool AnyAborted(const Aborts& aborts) {
  return std::any_of(aborts.begin(), aborts.end(),
                     [](const AbortPtr& abort) { return abort->set(); });
}

Failure AbortFailure() { return {"ERR_MOE_EP_ABORTED", "the stream was aborted"}; }

// Launches by the owner of a stream record the event anew, and may do so again and again before it
// is reached: only a stream waits for the launch that is the newest now.
std::shared_ptr<Recording> CudaRecording::AsOfNow() {
  if (parts_.join == nullptr) return nullptr;
  const DriverUse use;
  const RelaxedCaptures relaxed;
  parts_.device->MakeCurrent();
  Parts now = parts_;
  now.join = nullptr;
  now.captured = nullptr;
  now.done = parts_.device->NewEvent();
  cudaStream_t side = nullptr;
  Check(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking), "cudaStreamCreate");
  cudaError_t status = cudaStreamWaitEvent(side, parts_.done.get(), cudaEventWaitDefault);
  if (status == cudaSuccess) status = cudaEventRecord(now.done.get(), side);
  cudaStreamDestroy(side);  // what is on it still comes
  Check(status, "cudaStreamWaitEvent");
  return std::make_shared<CudaRecording>(std::move(now));
}

MaybeFailure CudaRecording::Wait(const uint32_t* abort) {
  while (true) {
    {
      const DriverUse use;
      const RelaxedCaptures relaxed;
      parts_.device->MakeCurrent();
      const cudaError_t status = cudaEventQuery(parts_.done.get());
      if (status != cudaErrorNotReady)
        return OutcomeOf(status, parts_.failure.get(), parts_.aborts);
    }
    if (__atomic_load_n(abort, __ATOMIC_ACQUIRE) != 0)
      return Failure{"ERR_MOE_EP_ABORTED", "a stream was aborted while it waited for an event"};
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void CudaRecording::WhenComplete(std::function<void(MaybeFailure)> then) {
  parts_.completions->Add({parts_.done, parts_.failure, parts_.aborts, std::move(then)});
}

bool CudaRecording::completed() {
  const DriverUse use;
  // Of an aborted stream nobody waits for the rest.
  if (AnyAborted(parts_.aborts)) return true;
  const RelaxedCaptures relaxed;
  parts_.device->MakeCurrent();
  const bool done = cudaEventQuery(parts_.done.get()) != cudaErrorNotReady;
  cudaGetLastError();
  return done;
}

int64_t CudaRecording::completed_at() {
  const RelaxedCaptures relaxed;
  parts_.device->MakeCurrent();
  const bool done = cudaEventQuery(parts_.done.get()) == cudaSuccess;
  cudaGetLastError();
  return done ? parts_.device->TimeOf(parts_.time.get(), parts_.base) : 0;
}

}  // namespace moe_ep::cuda
