// The first half of a dispatch in one launch of one cluster: its blocks are resident together, so
// they can add up each other's counts, and none of them waits for one that has not begun.
//
// Here is how ranks tell one another their counts; how those are made and what rows follow from
// them is in the headers.
#include <cooperative_groups.h>

#include <string>

#include "cuda/expert_starts.cuh"
#include "cuda/kernels.h"
#include "cuda/notify_counts.cuh"
#include "cuda/notify_rows.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/layout/placement.h"

namespace moe_ep::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kMostWarps = kNotifyThreads / kLanes;
constexpr int64_t kMostShared = 200 << 10;

// What this rank knows by itself. One block calls it.
__device__ void WriteOwnCounts(const NotifyArguments& a, const SharedWords& words,
                               const int32_t* shared) {
  const int32_t* totals = shared + words.totals();
#pragma unroll 1
  for (int i = threadIdx.x; i < words.ranks; i += kNotifyThreads)
    a.out.num_tokens_per_rank[i] = totals[i];
#pragma unroll 1
  for (int i = threadIdx.x; i < words.experts; i += kNotifyThreads)
    a.out.num_tokens_per_expert[i] = totals[words.ranks + i];
#pragma unroll 1
  for (int i = threadIdx.x; i < words.ranks * words.channels; i += kNotifyThreads)
    a.out.channel_prefix_matrix[i] = shared[words.channel_totals() + i];
}

__device__ void WriteMessage(const NotifyArguments& a, const SharedWords& words,
                             const int32_t* shared, int peer, uint64_t epoch,
                             const InvalidId& invalid) {
  const Message message = a.buffer.MessageAt(peer, a.buffer.rank(), epoch);
  const int32_t* totals = shared + words.totals();
  if (threadIdx.x == 0) FillHead(message.head(), a.shared, invalid, a.room, a.tokens);
#pragma unroll 1
  for (int i = threadIdx.x; i < words.ranks; i += kNotifyThreads)
    message.tokens_per_rank()[i] = totals[i];
#pragma unroll 1
  for (int i = threadIdx.x; i < words.experts; i += kNotifyThreads)
    message.per_expert()[i] = totals[words.ranks + i];
#pragma unroll 1
  for (int i = threadIdx.x; i < words.channels; i += kNotifyThreads)
    message.channel_ends()[i] = shared[words.channel_totals() + peer * words.channels + i];
}

// Adds up the messages of all ranks: every block for itself. A barrier must follow.
__device__ void GatherRanks(const NotifyArguments& a, const SharedWords& words, int32_t* shared,
                            uint64_t epoch) {
  const int columns = a.grouped() ? words.columns() : words.ranks;
  const DeviceBuffer::Inbox inbox = a.buffer.InboxOf(epoch);
#pragma unroll 1
  for (int column = threadIdx.x; column < columns; column += kNotifyThreads) {
    int32_t before = 0;
    int32_t total = 0;
#pragma unroll 8
    for (int source = 0; source < words.ranks; ++source) {
      const Message message = inbox.From(source);
      const int32_t count = column < words.ranks ? message.tokens_per_rank()[column]
                                                 : message.per_expert()[column - words.ranks];
      if (source < a.buffer.rank()) before += count;
      total += count;
    }
    shared[words.before_rank() + column] = before;
    shared[words.received() + column] = total;
  }
}

// What this rank receives, of each rank. One block calls it.
__device__ void WriteRankPrefixes(const NotifyArguments& a, const SharedWords& words,
                                  const DeviceBuffer::Inbox& inbox) {
#pragma unroll 1
  for (int destination = threadIdx.x; destination < words.ranks; destination += kNotifyThreads) {
    int32_t sum = 0;
#pragma unroll 8
    for (int source = 0; source < words.ranks; ++source) {
      sum += inbox.From(source).tokens_per_rank()[destination];
      a.out.rank_prefix_matrix[source * words.ranks + destination] = sum;
    }
    if (a.out.host_counts != nullptr) a.out.host_counts[destination] = sum;
  }
}

// In channels. One block calls it.
__device__ void WriteReceivedChannels(const NotifyArguments& a, const SharedWords& words,
                                      const DeviceBuffer::Inbox& inbox) {
#pragma unroll 1
  for (int i = threadIdx.x; i < words.ranks * words.channels; i += kNotifyThreads)
    a.out.recv_channel_prefix_matrix[i] =
        inbox.From(i / words.channels).channel_ends()[i % words.channels];
}

// For each of its experts. One block calls it.
__device__ void WriteReceivedSelections(const NotifyArguments& a, const SharedWords& words,
                                        const ExpertPlacement& placement,
                                        const DeviceBuffer::Inbox& inbox) {
  const int64_t begin = placement.BeginOf(a.buffer.rank());
#pragma unroll 1
  for (int64_t expert = threadIdx.x; expert < placement.CountOf(a.buffer.rank());
       expert += kNotifyThreads) {
    int32_t sum = 0;
#pragma unroll 8
    for (int source = 0; source < words.ranks; ++source)
      sum += inbox.From(source).per_expert()[begin + expert];
    const auto rounded = static_cast<int32_t>(RoundUpRows(sum, a.shared.expert_alignment));
    a.out.num_recv_selections[expert] = sum;
    a.out.num_recv_tokens_per_expert[expert] = rounded;
    if (a.out.host_counts != nullptr) a.out.host_counts[words.ranks + expert] = rounded;
  }
}

// All threads of the cluster call it.
__device__ void MeetForDispatch(const NotifyArguments& a, int32_t* shared) {
  __shared__ Found found;
  __shared__ int64_t rows[kMostRanks];

  const uint64_t begin_ns = Nanoseconds();
  // One thread decides for all, for the group may be poisoned meanwhile.
  const bool decides = blockIdx.x == 0 && threadIdx.x == 0;
  const PoisonLook poison = decides ? PoisonLook(a.buffer.routes) : PoisonLook();
  const DeviceBuffer& buffer = a.buffer;
  const cg::cluster_group cluster = cg::this_cluster();
  const SharedWords words(a, buffer.ranks());
  const ExpertPlacement placement{a.shared.experts, buffer.ranks()};
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const uint64_t epoch = buffer.Epochs().dispatch + 1;
  const uint64_t combines = buffer.Epochs().combine;
  // A first look at what is waited for later.
  const bool read =
      warp != 0 || lane >= buffer.ranks() ||
      LoadSignal(buffer.routes.Signal(
          buffer.rank(), buffer.SignalIndex(SignalKind::kCombineRead, lane))) >= combines;

#pragma unroll 1
  for (int64_t i = threadIdx.x; i < words.rank_table(); i += kNotifyThreads) shared[i] = 0;
#pragma unroll 1
  for (int expert = threadIdx.x; expert < words.experts; expert += kNotifyThreads)
    shared[words.rank_table() + expert] = static_cast<int32_t>(placement.RankOf(expert));
  if (threadIdx.x == 0) found = {true, kNoSlot};
  cluster.sync();  // all have seen that nothing has failed before one may find that it has
  const TokenRun run = RunOf(a, blockIdx.x, warp);
  if (warp < a.warps) CountRun(a, words, shared, run, warp, lane, &found.invalid);
  if (decides) {
    found.may_begin =
        !Failed(a.patience.failure) && poison.Check(buffer.routes, a.patience.failure);
  }
  __syncthreads();
  ScanWarps(words, shared);
  const Found all = GatherBlocks(words, shared, &found);
  if (!all.may_begin) return;
  if (blockIdx.x == 0 && threadIdx.x == 0) buffer.Epochs().dispatch = epoch;
  if (blockIdx.x == 0) WriteOwnCounts(a, words, shared);

  // Peers may write into this rank's slot once all have read its last results.
  bool ok = true;
  if (!__syncthreads_and(read)) {
    if (warp == 0)
      ok = WaitForAll(buffer, a.patience, begin_ns, SignalKind::kCombineRead, combines,
                      Operation::kIntranodeDispatch, Missing::kCombineRead, lane);
    if (!__syncthreads_and(ok)) return;
  }
  const auto slot = static_cast<int64_t>(all.invalid);
  const InvalidId invalid =
      all.invalid == kNoSlot ? InvalidId{-1, -1} : InvalidId{slot / a.topk, a.ids[slot]};
#pragma unroll 1
  for (int step = blockIdx.x; step < buffer.ranks(); step += kNotifyBlocks) {
    const int peer = (buffer.rank() + step) % buffer.ranks();
    WriteMessage(a, words, shared, peer, epoch, invalid);
    __syncthreads();
    if (threadIdx.x == 0)
      StoreSignal(
          buffer.routes.Signal(peer, buffer.SignalIndex(SignalKind::kCounts, buffer.rank())),
          epoch);
  }
  if (warp == 0)
    ok = WaitForAll(buffer, a.patience, begin_ns, SignalKind::kCounts, epoch,
                    Operation::kIntranodeDispatch, Missing::kCounts, lane);
  if (!__syncthreads_and(ok)) return;
  const DeviceBuffer::Inbox inbox = buffer.InboxOf(epoch);
  const int64_t room = RoomOf(inbox, words.ranks);
  GatherRanks(a, words, shared, epoch);
  if (AnyHeadIsWrong(buffer, epoch)) {
    if (blockIdx.x == 0 && threadIdx.x == 0)
      FailForHeads(buffer, epoch, a.reporting, a.patience.failure);
    return;
  }
  if (blockIdx.x == 0) WriteRankPrefixes(a, words, inbox);
  if (blockIdx.x == 1) WriteReceivedChannels(a, words, inbox);
  if (blockIdx.x == 2) WriteReceivedSelections(a, words, placement, inbox);
  if (a.grouped()) {
    PlaceExperts(a, words, shared, placement, rows, warp, lane);
  } else {
    if (threadIdx.x < words.ranks) rows[threadIdx.x] = shared[words.received() + threadIdx.x];
    __syncthreads();
  }
  if (!HasRoom(a, words.ranks, rows, room, epoch)) return;
  if (warp < a.warps) {
    WriteHeads(a, words, shared, run, warp, lane);
    if (a.grouped()) WriteSlotRows(a, words, shared, run, warp, lane);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) buffer.Epochs().settled = epoch;
}

__global__ void __cluster_dims__(kNotifyBlocks, 1, 1) __launch_bounds__(kNotifyThreads)
    NotifyKernel(const __grid_constant__ NotifyArguments a) {
  extern __shared__ int32_t shared[];
  cudaTriggerProgrammaticLaunchCompletion();  // what sends rows waits for this kernel's end
  MeetForDispatch(a, shared);
  cg::this_cluster().sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) SnapshotFailure(a.patience.failure, a.snapshot);
}

}  // namespace

int64_t MostRanks() { return kMostRanks; }

void PrepareDevice(int device) {
  Check(cudaSetDevice(device), "cudaSetDevice");
  NextRefusalText();
}

void Notify(const Exec& exec, const NotifyCall& call) {
  const NotifyOutputs& out = call.out;
  NotifyArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .shared = call.arguments,
      .ids = TopkIds(call.topk_idx),
      .tokens = call.topk_idx.size(0),
      .topk = call.topk_idx.size(1),
      .room = call.room,
      .out = {out.num_tokens_per_rank.data<int32_t>(), out.num_tokens_per_expert.data<int32_t>(),
              out.is_token_in_rank.data<uint8_t>(), out.rank_prefix_matrix.data<int32_t>(),
              out.channel_prefix_matrix.data<int32_t>(),
              out.recv_channel_prefix_matrix.data<int32_t>(), out.send_head.data<int32_t>(),
              out.num_recv_tokens_per_expert.data<int32_t>(),
              out.num_recv_selections.data<int32_t>(), out.slot_row.data<int32_t>(),
              out.host_counts.data<int32_t>()},
      .patience = PatienceOf(exec, call.timeout_ms),
      .reporting = MakeReporting(),
      .snapshot = exec.cuda_snapshot(),
      .warps = kMostWarps,
  };
  const int ranks = call.buffer->routes.world_size();
  const auto bytes_for = [&](int warps) {
    a.warps = warps;
    return SharedWords(a, ranks).end() * static_cast<int64_t>(sizeof(int32_t));
  };
  while (a.warps > 1 && bytes_for(a.warps) > kMostShared) a.warps /= 2;
  const int64_t bytes = bytes_for(a.warps);
  if (bytes > kMostShared) {
    return exec.Fail("ERR_MOE_EP_UNSUPPORTED",
                     "intranode dispatch: " + std::to_string(call.arguments.experts) +
                         " experts are more than a cuda device counts at once");
  }
  Launch(NotifyKernel, {.grid = kNotifyBlocks, .block = kNotifyThreads, .shared_bytes = bytes},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
