// Combine: a block answers a message, straight into the results of its source; then, once all ranks
// have answered, a block sums up a token.
#include <algorithm>

#include "cuda/device_buffer.cuh"
#include "cuda/weighted_sum.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x6c6c636f6d62303a;  // this file's

struct AnswerArguments {
  DeviceBuffer buffer;
  bool weighted;
  bool rank_major;
  const uint16_t* x;
  int64_t hidden;
  const uint8_t* origins;
  const int32_t* num_messages;
  unsigned int* arrived;
  moe_ep_describe_failure describe_not_received;
  moe_ep_failure_record* failure;
  moe_ep_failure_record* snapshot;
};

// Whether the slot's newest dispatch was received, the same for all threads of the block; else the
// stream is in failure. Ranks find it out alike, so nobody waits for this one.
__device__ bool CheckReceived(const DeviceBuffer& buffer, moe_ep_describe_failure describe,
                              moe_ep_failure_record* failure) {
  const SlotState state = buffer.State();
  if (state.received == state.epoch) return true;
  if (blockIdx.x == 0 && threadIdx.x == 0) Fail(failure, describe, buffer.slot);
  return false;
}

__device__ void Answer(const AnswerArguments& a, int source, int64_t index) {
  const DeviceBuffer& buffer = a.buffer;
  const int64_t place = source * buffer.layout.max_tokens + index;
  const auto& origin =
      *reinterpret_cast<const MessageHeader*>(a.origins + place * buffer.row_offset());
  const Selection* const selections = origin.selections();
  const int thread = static_cast<int>(threadIdx.x);
  if (a.rank_major)
    return CopyVectors(buffer.Result(source, origin.token, origin.place), a.x + place * a.hidden,
                       a.hidden * 2, thread, kThreads);
  const auto row_of = [&](int i) { return a.x + int64_t{selections[i].expert} * a.hidden; };
  if (a.weighted)
    return SumRows<true>(origin.count, a.hidden, buffer.Result(source, origin.token, origin.place),
                         row_of, [&](int i) { return selections[i].weight; });
  for (int i = 0; i < origin.count; ++i)
    CopyVectors(buffer.Result(source, origin.token, selections[i].slot), row_of(i), a.hidden * 2,
                thread, kThreads);
}

__global__ void __launch_bounds__(kThreads)
    AnswerKernel(const __grid_constant__ AnswerArguments a) {
  const DeviceBuffer& buffer = a.buffer;
  if (MayBegin(buffer, a.failure) && CheckReceived(buffer, a.describe_not_received, a.failure)) {
    // Messages in turns of sources, from the own rank on, so that not all ranks write to one.
    int64_t most = 0;
    for (int source = 0; source < buffer.ranks(); ++source)
      most = max(most, int64_t{a.num_messages[source]});
    for (int64_t i = blockIdx.x; i < most * buffer.ranks(); i += gridDim.x) {
      const int source = static_cast<int>((buffer.rank() + i) % buffer.ranks());
      const int64_t index = i / buffer.ranks();
      if (index < a.num_messages[source]) Answer(a, source, index);
    }
    __threadfence_system();
  }
  if (!IsLastBlock(a.arrived) || threadIdx.x >= kLanes) return;
  if (FailedForWarp(a.failure)) {
    if (threadIdx.x == 0) SnapshotFailure(a.failure, a.snapshot);
    return;
  }
  __threadfence_system();
  SignalAll(buffer, SignalKind::kResults, buffer.State().epoch);
}

struct SumArguments {
  DeviceBuffer buffer;
  bool weighted;
  ExpertPlacement placement;
  TopkIds ids;
  int64_t topk;
  const float* weights;  // null when weighted
  int64_t tokens;
  uint16_t* out;
  int64_t hidden;
  int64_t* wait_stats;
  unsigned int* arrived;
  Patience patience;
  moe_ep_describe_failure describe_id;
  moe_ep_describe_failure describe_not_received;
  moe_ep_failure_record* failure;
  moe_ep_failure_record* snapshot;
};

// Placement knows no ids but experts' and -1.
__device__ bool CheckIds(const SumArguments& a) {
  for (int64_t i = threadIdx.x; i < a.tokens * a.topk; i += kThreads) {
    if (!IsInvalidId(a.ids[i], a.placement.experts)) continue;
    if (blockIdx.x == 0)
      Fail(a.failure, a.describe_id, a.buffer.rank(), i / a.topk, a.ids[i], a.placement.experts);
    return false;
  }
  return true;
}

// All threads of the block call it. `slots` is the block's shared memory.
__device__ void SumToken(const SumArguments& a, int64_t token, int* slots) {
  const DeviceBuffer& buffer = a.buffer;
  uint16_t* const out = a.out + token * a.hidden;
  uint32_t ranks = 0;
  int count = 0;
  for (int slot = 0; slot < a.topk; ++slot) {
    const int64_t id = a.ids[token * a.topk + slot];
    if (id < 0) continue;
    ranks |= 1u << a.placement.RankOf(id);
    if (threadIdx.x == 0) slots[count] = slot;
    ++count;
  }
  __syncthreads();
  const auto row_at = [&](int place) { return buffer.Result(buffer.rank(), token, place); };
  if (a.weighted) {
    // One row from each rank that the token went to, in the order of ranks.
    SumRows<false>(__popc(ranks), a.hidden, out, row_at, [](int) { return 1.0f; });
  } else {
    SumRows<true>(
        count, a.hidden, out, [&](int i) { return row_at(slots[i]); },
        [&](int i) { return a.weights[token * a.topk + slots[i]]; });
  }
  __syncthreads();  // before the next token takes the shared memory
}

__global__ void __launch_bounds__(kThreads) SumKernel(const __grid_constant__ SumArguments a) {
  __shared__ int slots[kLanes];
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  if (MayBegin(buffer, a.failure) && CheckReceived(buffer, a.describe_not_received, a.failure) &&
      WaitForAll(buffer, a.patience, begin_ns,
                 {SignalKind::kResults, buffer.State().epoch, Operation::kLowLatencyCombine,
                  Missing::kRows},
                 blockIdx.x == 0 ? a.wait_stats : nullptr) &&
      __syncthreads_and(CheckIds(a)) != 0) {
    for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x)
      SumToken(a, token, slots);
  }
  if (IsLastBlock(a.arrived) && threadIdx.x == 0) SnapshotFailure(a.failure, a.snapshot);
}

}  // namespace

void CombineSend(const Exec& exec, const CombineSendCall& call) {
  const AnswerArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .weighted = call.weighted,
      .rank_major = call.rank_major,
      .x = call.x.data<uint16_t>(),
      .hidden = call.x.size(2),
      .origins = call.received.origins.data<uint8_t>(),
      .num_messages = call.received.num_messages.data<int32_t>(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1),
      .describe_not_received = DescribeNotReceived,
      .failure = exec.cuda_failure(),
      .snapshot = exec.cuda_snapshot(),
  };
  Launch(AnswerKernel, {.grid = dim3(static_cast<unsigned>(kMostBlocks)), .block = kThreads},
         exec.cuda_stream(), a);
}

void CombineReceive(const Exec& exec, const CombineReceiveCall& call) {
  const SumArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .weighted = call.weighted,
      .placement = {call.experts, call.buffer->routes.world_size()},
      .ids = TopkIds(call.topk_idx),
      .topk = call.topk_idx.size(1),
      .weights = call.topk_weights.data<float>(),
      .tokens = call.out.size(0),
      .out = call.out.data<uint16_t>(),
      .hidden = call.out.size(1),
      .wait_stats = call.wait_stats.data<int64_t>(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1),
      .patience = PatienceOf(exec, call.timeout_ms),
      .describe_id = DescribeCombineId,
      .describe_not_received = DescribeNotReceived,
      .failure = exec.cuda_failure(),
      .snapshot = exec.cuda_snapshot(),
  };
  const int64_t grid = std::clamp<int64_t>(a.tokens, 1, kMostBlocks);
  Launch(SumKernel, {.grid = dim3(static_cast<unsigned>(grid)), .block = kThreads},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
