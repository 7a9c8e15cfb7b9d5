// The device side of failures: kernels of a stream that has failed write nothing, and a kernel that
// finds something wrong says so once.
//
//   __global__ void Kernel(..., moe_ep_failure_record* failure) {
//     if (cuda::Failed(failure)) return;
//     ...
//     cuda::Fail(failure, describe, slot, id);
//
// `describe` is a host function; the kernel only carries its address.
#pragma once

#include <cstdint>

#include "moe_ep/abi.h"

namespace moe_ep::cuda {

__device__ __forceinline__ bool Failed(const moe_ep_failure_record* record) {
  uint32_t failed;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(failed) : "l"(&record->failed));
  return failed != 0;
}

// Whether the stream had failed when the kernel began, of kernels that have waited for what is
// ahead; a failure meanwhile may be missed. Warps of a multiprocessor share the answer, where
// `Failed` asks the second-level cache for each of them: all of a large grid ask for one word at
// about the same time, which one part of that cache serves.
__device__ __forceinline__ bool FailedBefore(const moe_ep_failure_record* record) {
  uint32_t failed;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(failed) : "l"(&record->failed));
  return failed != 0;
}

// Whether the stream has failed, the same for all threads that ask together. The record may change
// at any moment, by an abort or by another block: threads that wait for one another must not part.
// All threads of the block, or of the warp, call it.
__device__ __forceinline__ bool FailedForBlock(const moe_ep_failure_record* record) {
  return __syncthreads_or(Failed(record)) != 0;
}
__device__ __forceinline__ bool FailedForWarp(const moe_ep_failure_record* record) {
  return __any_sync(0xffffffffu, Failed(record)) != 0;
}

// The first call wins: which values are reported must not depend on which thread is faster, so let
// one thread decide.
__device__ inline void Fail(moe_ep_failure_record* record, moe_ep_describe_failure describe,
                            int64_t v0 = 0, int64_t v1 = 0, int64_t v2 = 0, int64_t v3 = 0,
                            int64_t v4 = 0, int64_t v5 = 0) {
  if (atomicCAS(&record->failed, 0u, 1u) != 0u) return;
  record->describe = describe;
  record->values[0] = v0;
  record->values[1] = v1;
  record->values[2] = v2;
  record->values[3] = v3;
  record->values[4] = v4;
  record->values[5] = v5;
}

// What the last kernel of a command ends with, also where it ends early: one thread, once all
// that may fail is done. `snapshot` is the command's, which may be null.
__device__ inline void SnapshotFailure(const moe_ep_failure_record* record,
                                       moe_ep_failure_record* snapshot) {
  if (snapshot == nullptr || !Failed(record)) return;
  *snapshot = *record;
  __threadfence_system();
}

}  // namespace moe_ep::cuda
