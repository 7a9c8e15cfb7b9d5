// Small kernels of streams. All end early when *abort is set, and do nothing where `failure` (which
// may be null) says that the stream has failed.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "moe_ep/abi.h"

namespace moe_ep::cuda {

// Host memory that device code reads: set by a host thread when something happened.
struct HostSignal {
  uint32_t ready;
  moe_ep_failure_record failure;
};

// Takes time.
void LaunchDelay(cudaStream_t stream, int64_t microseconds, const uint32_t* abort,
                 const moe_ep_failure_record* failure);
// *to becomes `failure`, unless it has failed already.
void LaunchFail(cudaStream_t stream, moe_ep_failure_record* to,
                const moe_ep_failure_record& failure);
// *to becomes *from, whatever it was.
void LaunchCopyFailure(cudaStream_t stream, const moe_ep_failure_record* from,
                       moe_ep_failure_record* to);
// *to becomes *from where that has failed and *to has not; then *from is cleared when asked for.
void LaunchMergeFailure(cudaStream_t stream, moe_ep_failure_record* from, moe_ep_failure_record* to,
                        bool clear);
// *to becomes *from, which is cleared.
void LaunchTakeFailure(cudaStream_t stream, moe_ep_failure_record* from, moe_ep_failure_record* to);
// Waits for the signal and merges its failure.
void LaunchWaitForHost(cudaStream_t stream, HostSignal* signal, const uint32_t* abort,
                       moe_ep_failure_record* failure);

}  // namespace moe_ep::cuda
