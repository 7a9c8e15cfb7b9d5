// The first half of a dispatch in one launch of one cluster: its blocks are resident together, so
// they can add up each other's counts, and none of them waits for one that has not begun.
//
// Each warp counts a run of tokens in shared memory. Prefix sums over warps, then blocks, then
// ranks give every token its row: nothing depends on which warp is faster.
#include <cooperative_groups.h>

#include <string>

#include "cuda/expert_starts.cuh"
#include "cuda/kernels.h"
#include "cuda/meeting.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kBlocks = 8;  // the largest cluster that is portable
constexpr int kThreads = 1024;
constexpr int kMostWarps = kThreads / kLanes;
constexpr int64_t kMostShared = 200 << 10;
constexpr unsigned long long kNone = ~0ull;

struct Outputs {
  int32_t* num_tokens_per_rank;
  int32_t* num_tokens_per_expert;
  uint8_t* is_token_in_rank;
  int32_t* rank_prefix_matrix;
  int32_t* channel_prefix_matrix;
  int32_t* recv_channel_prefix_matrix;
  int32_t* send_head;
  int32_t* num_recv_tokens_per_expert;
  int32_t* num_recv_selections;
  int32_t* slot_row;
  int32_t* host_counts;  // [R + local experts] in memory of the host, or null: see calls.h
};

struct NotifyArguments {
  DeviceBuffer buffer;
  SharedArguments shared;
  TopkIds ids;
  int64_t tokens;
  int64_t topk;
  int64_t room;
  Outputs out;
  Patience patience;
  Reporting reporting;
  moe_ep_failure_record* snapshot;
  int warps;  // that count; as many as shared memory has room for

  __host__ __device__ bool grouped() const { return shared.grouped != 0; }
};

// i32 words of shared memory.
struct SharedWords {
  int ranks, experts, channels, warps;
  bool grouped;

  __host__ __device__ explicit SharedWords(const NotifyArguments& a, int num_ranks)
      : ranks(num_ranks),
        experts(static_cast<int>(a.shared.experts)),
        channels(static_cast<int>(a.shared.channels)),
        warps(a.warps),
        grouped(a.grouped()) {}

  // Counts of every warp: tokens of each rank, and selections of each expert, which one table of
  // the block does for unless each selection gets a row.
  __host__ __device__ int64_t rank_counts() const { return 0; }
  __host__ __device__ int64_t expert_counts() const { return int64_t{warps} * ranks; }
  __host__ __device__ int64_t expert_tables() const { return grouped ? warps : 1; }
  __host__ __device__ int64_t channel_counts() const {
    return expert_counts() + expert_tables() * experts;
  }
  // Of the rank.
  __host__ __device__ int64_t channel_totals() const {
    return channel_counts() + int64_t{ranks} * channels;
  }
  // Columns are ranks (their tokens), then experts (their selections): of this block, of the blocks
  // before it, of all blocks, and of the ranks before this one.
  __host__ __device__ int columns() const { return ranks + experts; }
  __host__ __device__ int64_t block_totals() const {
    return channel_totals() + int64_t{ranks} * channels;
  }
  __host__ __device__ int64_t before_block() const { return block_totals() + columns(); }
  __host__ __device__ int64_t totals() const { return before_block() + columns(); }
  __host__ __device__ int64_t before_rank() const { return totals() + columns(); }
  // Of all ranks; of experts only where rows are grouped.
  __host__ __device__ int64_t received() const { return before_rank() + columns(); }
  // The rank of each expert.
  __host__ __device__ int64_t rank_table() const { return received() + columns(); }
  __host__ __device__ int64_t end() const { return rank_table() + experts; }
};

// Ranks of a token as bits. Ids that are none count as nothing here; they are found by whoever
// counts experts.
__device__ __forceinline__ uint32_t RanksOf(const NotifyArguments& a, const int32_t* rank_table,
                                            int64_t token) {
  uint32_t ranks = 0;
#pragma unroll 8
  for (int64_t slot = token * a.topk; slot < (token + 1) * a.topk; ++slot) {
    const int64_t expert = a.ids[slot];
    if (expert >= 0 && expert < a.shared.experts) ranks |= 1u << rank_table[expert];
  }
  return ranks;
}

struct TokenRun {
  int64_t begin, end;
};

// The tokens of a warp. Runs ascend with blocks, then warps.
__device__ __forceinline__ TokenRun RunOf(const NotifyArguments& a, int block, int warp) {
  const int64_t runs = int64_t{kBlocks} * a.warps;
  const int64_t length = (a.tokens + runs - 1) / runs;
  const int64_t begin = min((int64_t{block} * a.warps + warp) * length, a.tokens);
  return {begin, min(begin + length, a.tokens)};
}

// Whole warps go together; lanes past the end have a token of no rank.
__device__ void CountRun(const NotifyArguments& a, const SharedWords& words, int32_t* shared,
                         const TokenRun& run, int warp, int lane,
                         unsigned long long* lowest_invalid) {
  int32_t* experts = shared + words.expert_counts() + (words.grouped ? warp * words.experts : 0);
  int32_t* channels = shared + words.channel_counts();
  const int64_t per_channel = max(int64_t{1}, (a.tokens + words.channels - 1) / words.channels);
  int32_t tokens_of_rank = 0;  // of the rank with this lane's number
  for (int64_t first = run.begin; first < run.end; first += kLanes) {
    const int64_t token = first + lane;
    uint32_t ranks = 0;
    if (token < run.end) {
      ranks = RanksOf(a, shared + words.rank_table(), token);
#pragma unroll 8
      for (int64_t slot = token * a.topk; slot < (token + 1) * a.topk; ++slot) {
        const int64_t expert = a.ids[slot];
        if (IsInvalidId(expert, a.shared.experts)) {
          atomicMin(lowest_invalid, static_cast<unsigned long long>(slot));
        } else if (expert >= 0) {
          atomicAdd(&experts[expert], 1);
        }
      }
      const int64_t channel = token / per_channel;
      for (uint32_t left = ranks; left != 0; left &= left - 1)
        atomicAdd(&channels[(__ffs(left) - 1) * words.channels + channel], 1);
    }
    for (int rank = 0; rank < words.ranks; ++rank) {
      const uint32_t lanes = __ballot_sync(kAllLanes, (ranks >> rank & 1) != 0);
      if (lane == rank) tokens_of_rank += __popc(lanes);
    }
  }
  if (lane < words.ranks) shared[words.rank_counts() + warp * words.ranks + lane] = tokens_of_rank;
}

// Counts of warps become those of the warps before, and the block's totals are left.
__device__ void ScanWarps(const SharedWords& words, int32_t* shared) {
  for (int column = threadIdx.x; column < words.ranks + words.experts; column += kThreads) {
    const bool rank = column < words.ranks;
    int32_t* counts = rank ? shared + words.rank_counts() + column
                           : shared + words.expert_counts() + (column - words.ranks);
    const int stride = rank ? words.ranks : words.experts;
    const int rows = rank ? words.warps : static_cast<int>(words.expert_tables());
    int32_t sum = 0;
    for (int row = 0; row < rows; ++row) {
      const int32_t count = counts[row * stride];
      counts[row * stride] = sum;
      sum += count;
    }
    shared[words.block_totals() + column] = sum;
  }
}

struct Found {
  bool may_begin;
  unsigned long long invalid;  // lowest position of an id that is none, kNone without
};

// Adds up the blocks' totals and what they have found. No block looks at another's shared memory
// afterwards.
__device__ Found GatherBlocks(const SharedWords& words, int32_t* shared, Found* found) {
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  const auto block = static_cast<int>(blockIdx.x);
  for (int column = threadIdx.x; column < words.columns(); column += kThreads) {
    int32_t before = 0;
    int32_t total = 0;
#pragma unroll
    for (int other = 0; other < kBlocks; ++other) {
      const int32_t count = cluster.map_shared_rank(shared, other)[words.block_totals() + column];
      if (other < block) before += count;
      total += count;
    }
    shared[words.before_block() + column] = before;
    shared[words.totals() + column] = total;
  }
  for (int i = threadIdx.x; i < words.ranks * words.channels; i += kThreads) {
    int32_t total = 0;
#pragma unroll
    for (int other = 0; other < kBlocks; ++other)
      total += cluster.map_shared_rank(shared, other)[words.channel_counts() + i];
    shared[words.channel_totals() + i] = total;
  }
  Found all = *cluster.map_shared_rank(found, 0);
#pragma unroll
  for (int other = 1; other < kBlocks; ++other)
    all.invalid = min(all.invalid, cluster.map_shared_rank(found, other)->invalid);
  cluster.sync();
  // Of each rank: tokens of its channels up to each.
  for (int rank = threadIdx.x; rank < words.ranks; rank += kThreads) {
    int32_t* counts = shared + words.channel_totals() + rank * words.channels;
    for (int channel = 1; channel < words.channels; ++channel)
      counts[channel] += counts[channel - 1];
  }
  __syncthreads();
  return all;
}

// What this rank knows by itself. One block calls it.
__device__ void WriteOwnCounts(const NotifyArguments& a, const SharedWords& words,
                               const int32_t* shared) {
  const int32_t* totals = shared + words.totals();
  for (int i = threadIdx.x; i < words.ranks; i += kThreads)
    a.out.num_tokens_per_rank[i] = totals[i];
  for (int i = threadIdx.x; i < words.experts; i += kThreads)
    a.out.num_tokens_per_expert[i] = totals[words.ranks + i];
  for (int i = threadIdx.x; i < words.ranks * words.channels; i += kThreads)
    a.out.channel_prefix_matrix[i] = shared[words.channel_totals() + i];
}

__device__ void WriteMessage(const NotifyArguments& a, const SharedWords& words,
                             const int32_t* shared, int peer, uint64_t epoch,
                             const InvalidId& invalid) {
  const Message message = a.buffer.MessageAt(peer, a.buffer.rank(), epoch);
  const int32_t* totals = shared + words.totals();
  if (threadIdx.x == 0) FillHead(message.head(), a.shared, invalid, a.room, a.tokens);
  for (int i = threadIdx.x; i < words.ranks; i += kThreads)
    message.tokens_per_rank()[i] = totals[i];
  for (int i = threadIdx.x; i < words.experts; i += kThreads)
    message.per_expert()[i] = totals[words.ranks + i];
  for (int i = threadIdx.x; i < words.channels; i += kThreads)
    message.channel_ends()[i] = shared[words.channel_totals() + peer * words.channels + i];
}

// Adds up the messages of all ranks: every block for itself.
__device__ void GatherRanks(const NotifyArguments& a, const SharedWords& words, int32_t* shared,
                            uint64_t epoch) {
  const int columns = a.grouped() ? words.columns() : words.ranks;
  const DeviceBuffer::Inbox inbox = a.buffer.InboxOf(epoch);
  for (int column = threadIdx.x; column < columns; column += kThreads) {
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
  __syncthreads();
}

// What this rank receives. One block calls it.
__device__ void WriteReceived(const NotifyArguments& a, const SharedWords& words,
                              const ExpertPlacement& placement, uint64_t epoch) {
  const DeviceBuffer::Inbox inbox = a.buffer.InboxOf(epoch);
  for (int destination = threadIdx.x; destination < words.ranks; destination += kThreads) {
    int32_t sum = 0;
#pragma unroll 8
    for (int source = 0; source < words.ranks; ++source) {
      sum += inbox.From(source).tokens_per_rank()[destination];
      a.out.rank_prefix_matrix[source * words.ranks + destination] = sum;
    }
    if (a.out.host_counts != nullptr) a.out.host_counts[destination] = sum;
  }
  for (int i = threadIdx.x; i < words.ranks * words.channels; i += kThreads)
    a.out.recv_channel_prefix_matrix[i] =
        inbox.From(i / words.channels).channel_ends()[i % words.channels];
  const int64_t begin = placement.BeginOf(a.buffer.rank());
  for (int64_t expert = threadIdx.x; expert < placement.CountOf(a.buffer.rank());
       expert += kThreads) {
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

// Where rows are grouped: from selections that ranks before this one make of an expert to the row
// of this rank's first. `rows`: how many each destination receives. A warp for each destination.
__device__ void PlaceExperts(const NotifyArguments& a, const SharedWords& words, int32_t* shared,
                             const ExpertPlacement& placement, int64_t* rows, int warp, int lane) {
  for (int destination = warp; destination < words.ranks; destination += kThreads / kLanes) {
    const int64_t begin = words.ranks + placement.BeginOf(destination);
    int32_t* const before = shared + words.before_rank() + begin;
    // Past 2^31 rows nothing is sent, for no buffer has room for them.
    rows[destination] = ForEachStart(
        shared + words.received() + begin, static_cast<int>(placement.CountOf(destination)),
        a.shared.expert_alignment, lane,
        [&](int expert, int64_t start, int32_t) { before[expert] += static_cast<int32_t>(start); });
  }
  __syncthreads();
}

// Whether every destination has room for its rows. All blocks see the same.
__device__ bool HasRoom(const NotifyArguments& a, int num_ranks, const int64_t* rows,
                        uint64_t epoch) {
  const DeviceBuffer::Inbox inbox = a.buffer.InboxOf(epoch);
  const auto room_of = [&](int destination) { return inbox.From(destination).head().room; };
  const auto rank = static_cast<int>(threadIdx.x);
  const bool full = rank < num_ranks && rows[rank] > room_of(rank);
  if (!__syncthreads_or(full)) return true;
  if (blockIdx.x != 0 || threadIdx.x != 0) return false;
  for (int destination = 0; destination < num_ranks; ++destination) {
    if (rows[destination] <= room_of(destination)) continue;
    Fail(a.patience.failure, a.reporting.capacity, destination, rows[destination],
         a.buffer.layout.capacity, room_of(destination));
    break;
  }
  return false;
}

// Rows of a run's tokens at each rank. A warp calls it.
__device__ void WriteHeads(const NotifyArguments& a, const SharedWords& words,
                           const int32_t* shared, const TokenRun& run, int warp, int lane) {
  int32_t next = 0;  // row of the run's next token at the rank with this lane's number
  if (lane < words.ranks) {
    next = shared[words.rank_counts() + warp * words.ranks + lane] +
           shared[words.before_block() + lane];
    if (!a.grouped()) next += shared[words.before_rank() + lane];
  }
  const uint32_t lanes_below = (1u << lane) - 1;
  for (int64_t first = run.begin; first < run.end; first += kLanes) {
    const int64_t token = first + lane;
    const uint32_t ranks = token < run.end ? RanksOf(a, shared + words.rank_table(), token) : 0;
    for (int rank = 0; rank < words.ranks; ++rank) {
      const bool sent = (ranks >> rank & 1) != 0;
      const uint32_t lanes = __ballot_sync(kAllLanes, sent);
      const int32_t row = __shfl_sync(kAllLanes, next, rank) + __popc(lanes & lanes_below);
      if (token < run.end) {
        a.out.send_head[token * words.ranks + rank] = sent ? row : -1;
        a.out.is_token_in_rank[token * words.ranks + rank] = sent;
      }
      if (lane == rank) next += __popc(lanes);
    }
  }
}

// Rows of a run's selections at their experts' ranks: a lane for each selection, in order. A warp
// calls it.
__device__ void WriteSlotRows(const NotifyArguments& a, const SharedWords& words, int32_t* shared,
                              const TokenRun& run, int warp, int lane) {
  int32_t* counts = shared + words.expert_counts() + int64_t{warp} * words.experts;
  const int32_t* before_block = shared + words.before_block() + words.ranks;
  const int32_t* before_rank = shared + words.before_rank() + words.ranks;
  const uint32_t lanes_below = (1u << lane) - 1;
  for (int64_t first = run.begin * a.topk; first < run.end * a.topk; first += kLanes) {
    const int64_t slot = first + lane;
    const bool there = slot < run.end * a.topk;
    const auto expert = static_cast<int32_t>(there ? a.ids[slot] : -1);
    const uint32_t same = __match_any_sync(kAllLanes, expert);
    int32_t row = -1;
    if (expert >= 0) {
      row =
          counts[expert] + before_block[expert] + before_rank[expert] + __popc(same & lanes_below);
    }
    __syncwarp();
    if (expert >= 0 && (same & lanes_below) == 0) counts[expert] += __popc(same);
    __syncwarp();
    if (there) a.out.slot_row[slot] = row;
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

  for (int64_t i = threadIdx.x; i < words.rank_table(); i += kThreads) shared[i] = 0;
  for (int expert = threadIdx.x; expert < words.experts; expert += kThreads)
    shared[words.rank_table() + expert] = static_cast<int32_t>(placement.RankOf(expert));
  if (threadIdx.x == 0) found = {true, kNone};
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
  if (warp == 0)
    ok = WaitForAll(buffer, a.patience, begin_ns, SignalKind::kCombineRead, combines,
                    Operation::kIntranodeDispatch, Missing::kCombineRead, lane);
  if (!__syncthreads_and(ok)) return;
  const auto slot = static_cast<int64_t>(all.invalid);
  const InvalidId invalid =
      all.invalid == kNone ? InvalidId{-1, -1} : InvalidId{slot / a.topk, a.ids[slot]};
  for (int step = blockIdx.x; step < buffer.ranks(); step += kBlocks) {
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
  if (AnyHeadIsWrong(buffer, epoch)) {
    if (blockIdx.x == 0 && threadIdx.x == 0)
      FailForHeads(buffer, epoch, a.reporting, a.patience.failure);
    return;
  }
  GatherRanks(a, words, shared, epoch);
  if (blockIdx.x == 0) WriteReceived(a, words, placement, epoch);
  if (a.grouped()) {
    PlaceExperts(a, words, shared, placement, rows, warp, lane);
  } else {
    if (threadIdx.x < words.ranks) rows[threadIdx.x] = shared[words.received() + threadIdx.x];
    __syncthreads();
  }
  if (!HasRoom(a, words.ranks, rows, epoch)) return;
  if (warp < a.warps) {
    WriteHeads(a, words, shared, run, warp, lane);
    if (a.grouped()) WriteSlotRows(a, words, shared, run, warp, lane);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) buffer.Epochs().settled = epoch;
}

__global__ void __cluster_dims__(kBlocks, 1, 1) __launch_bounds__(kThreads)
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
  Launch(NotifyKernel, {.grid = kBlocks, .block = kThreads, .shared_bytes = bytes},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
