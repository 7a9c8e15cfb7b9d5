// core's kernels (packages/core/native/cuda/kernels.cu) as functions of the host.
#include "cuda/kernels.h"

#include <chrono>
#include <thread>

#include "moe_ep/cuda/check.h"
#include "software_cuda.h"

namespace moe_ep::cuda {
namespace {

using Clock = std::chrono::steady_clock;

bool IsSet(const uint32_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE) != 0; }

bool Failed(const moe_ep_failure_record* record) {
  return record != nullptr && IsSet(&record->failed);
}

void Merge(const moe_ep_failure_record* from, moe_ep_failure_record* to) {
  if (Failed(from) && !Failed(to)) *to = *from;
}

void Launch(cudaStream_t stream, std::function<void()> kernel) {
  Check(software_cuda::Submit(stream, cudaGraphNodeTypeKernel, std::move(kernel)),
        "cudaLaunchKernelEx");
}

}  // namespace

void LaunchDelay(cudaStream_t stream, int64_t microseconds, const uint32_t* abort,
                 const moe_ep_failure_record* failure) {
  Launch(stream, [=] {
    if (Failed(failure)) return;
    const Clock::time_point end = Clock::now() + std::chrono::microseconds(microseconds);
    while (Clock::now() < end && !IsSet(abort)) {
      const auto left = end - Clock::now();
      std::this_thread::sleep_for(std::min<Clock::duration>(left, std::chrono::microseconds(50)));
    }
  });
}

void LaunchFail(cudaStream_t stream, moe_ep_failure_record* to,
                const moe_ep_failure_record& failure) {
  Launch(stream, [to, failure] { Merge(&failure, to); });
}

void LaunchCopyFailure(cudaStream_t stream, const moe_ep_failure_record* from,
                       moe_ep_failure_record* to) {
  Launch(stream, [=] { Merge(from, to); });
}

void LaunchMergeFailure(cudaStream_t stream, moe_ep_failure_record* from, moe_ep_failure_record* to,
                        bool clear) {
  Launch(stream, [=] {
    Merge(from, to);
    if (clear) from->failed = 0;
  });
}

void LaunchTakeFailure(cudaStream_t stream, moe_ep_failure_record* from,
                       moe_ep_failure_record* to) {
  Launch(stream, [=] {
    if (!Failed(from)) return;
    *to = *from;
    from->failed = 0;
  });
}

void LaunchWaitForHost(cudaStream_t stream, HostSignal* signal, const uint32_t* abort,
                       moe_ep_failure_record* failure) {
  Launch(stream, [=] {
    while (!IsSet(&signal->ready)) {
      if (IsSet(abort)) return;
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    Merge(&signal->failure, failure);
  });
}

}  // namespace moe_ep::cuda
