// What the phases of combine share.
#pragma once

#include "cuda/device_buffer.cuh"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {

struct CombineArguments {
  DeviceBuffer buffer;
  ExpertPlacement placement;
  Patience patience;
  moe_ep_failure_record* snapshot;
  unsigned int* arrived;  // [2]: a counter for each phase
  bool weighted;
  bool rank_major;
  int hidden;
  int topk;
  const uint16_t* x;
  const int32_t* rows;
  const int32_t* messages;
  const int32_t* first;
  TopkIds ids;
  const float* weights;  // null when weighted
  int64_t tokens;
  uint16_t* out;
  int64_t* wait_stats;
  moe_ep_describe_failure describe_id;
  moe_ep_describe_failure describe_encodings;
  moe_ep_describe_failure describe_refusal;
  moe_ep_describe_failure describe_not_received;

  __device__ int stride() const { return static_cast<int>(PaddedTopk(topk)); }
  __device__ int vectors() const { return hidden / 8; }
};

// Whether the call may go on: the stream is well, and the slot's newest dispatch was received,
// which ranks find out alike, so that nobody waits for one where it was not. All threads of the
// block call it, and hear the same.
__device__ inline bool MayBegin(const CombineArguments& a, const SlotState& state) {
  const bool well = !Failed(a.patience.failure);
  const bool received = state.received == state.epoch;
  if (well && !received && blockIdx.x == 0 && threadIdx.x == 0)
    Fail(a.patience.failure, a.describe_not_received, a.buffer.slot);
  return __syncthreads_and(well && received) != 0;
}

}  // namespace moe_ep::cuda
