#include "cuda/kernels.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr LaunchShape kOneThread = {.grid = dim3(1), .block = dim3(1)};

__device__ uint32_t LoadFromHost(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__device__ void Merge(const moe_ep_failure_record* from, moe_ep_failure_record* to) {
  if (from->failed != 0 && to->failed == 0) *to = *from;
}

__global__ void Delay(uint64_t nanoseconds, const uint32_t* abort,
                      const moe_ep_failure_record* failure) {
  if (Failed(failure)) return;
  const uint64_t begin = Nanoseconds();
  while (Nanoseconds() - begin < nanoseconds && LoadFromHost(abort) == 0) {
    const uint64_t left = nanoseconds - (Nanoseconds() - begin);
    __nanosleep(left < 10000 ? static_cast<unsigned>(left) : 10000);
  }
}

__global__ void FailWith(moe_ep_failure_record* to, moe_ep_failure_record failure) {
  Merge(&failure, to);
}

// What is copied to lies on the host, far away, and says "no failure" already: mostly nothing is
// written.
__global__ void CopyFailure(const moe_ep_failure_record* from, moe_ep_failure_record* to) {
  Merge(from, to);
}

__global__ void MergeFailure(moe_ep_failure_record* from, moe_ep_failure_record* to, bool clear) {
  Merge(from, to);
  if (clear) from->failed = 0;
}

__global__ void TakeFailure(moe_ep_failure_record* from, moe_ep_failure_record* to) {
  if (from->failed == 0) return;
  *to = *from;
  from->failed = 0;
}

__global__ void WaitForHost(HostSignal* signal, const uint32_t* abort,
                            moe_ep_failure_record* failure) {
  while (LoadFromHost(&signal->ready) == 0) {
    if (LoadFromHost(abort) != 0) return;
    __nanosleep(1000);
  }
  Merge(&signal->failure, failure);
}

}  // namespace

void LaunchDelay(cudaStream_t stream, int64_t microseconds, const uint32_t* abort,
                 const moe_ep_failure_record* failure) {
  Launch(Delay, kOneThread, stream, static_cast<uint64_t>(microseconds) * 1000, abort, failure);
}

void LaunchFail(cudaStream_t stream, moe_ep_failure_record* to,
                const moe_ep_failure_record& failure) {
  Launch(FailWith, kOneThread, stream, to, failure);
}

void LaunchCopyFailure(cudaStream_t stream, const moe_ep_failure_record* from,
                       moe_ep_failure_record* to) {
  Launch(CopyFailure, kOneThread, stream, from, to);
}

void LaunchMergeFailure(cudaStream_t stream, moe_ep_failure_record* from, moe_ep_failure_record* to,
                        bool clear) {
  Launch(MergeFailure, kOneThread, stream, from, to, clear);
}

void LaunchTakeFailure(cudaStream_t stream, moe_ep_failure_record* from,
                       moe_ep_failure_record* to) {
  Launch(TakeFailure, kOneThread, stream, from, to);
}

void LaunchWaitForHost(cudaStream_t stream, HostSignal* signal, const uint32_t* abort,
                       moe_ep_failure_record* failure) {
  Launch(WaitForHost, kOneThread, stream, signal, abort, failure);
}

}  // namespace moe_ep::cuda
