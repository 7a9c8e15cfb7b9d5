#include "cuda/cuda_recording.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "cuda/completion_thread.h"
#include "cuda/host_failures.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

bool AnyAborted(const AbortWords& words) {
  return std::any_of(words.begin(), words.end(), [](const AbortWord& word) {
    return __atomic_load_n(word.get(), __ATOMIC_ACQUIRE) != 0;
  });
}

Failure AbortFailure() { return {"ERR_MOE_EP_ABORTED", "the stream was aborted"}; }

MaybeFailure CudaRecording::Wait(const uint32_t* abort) {
  parts_.device->MakeCurrent();
  cudaError_t status;
  while ((status = cudaEventQuery(parts_.done.get())) == cudaErrorNotReady) {
    if (__atomic_load_n(abort, __ATOMIC_ACQUIRE) != 0)
      return Failure{"ERR_MOE_EP_ABORTED", "a stream was aborted while it waited for an event"};
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return OutcomeOf(status, parts_.failure.get(), parts_.aborts);
}

void CudaRecording::WhenComplete(std::function<void(MaybeFailure)> then) {
  parts_.completions->Add({parts_.done, parts_.failure, parts_.aborts, std::move(then)});
}

bool CudaRecording::completed() {
  parts_.device->MakeCurrent();
  const bool done = cudaEventQuery(parts_.done.get()) != cudaErrorNotReady;
  cudaGetLastError();
  return done;
}

int64_t CudaRecording::completed_at() {
  return completed() ? parts_.device->TimeOf(parts_.time.get(), parts_.base) : 0;
}

}  // namespace moe_ep::cuda
