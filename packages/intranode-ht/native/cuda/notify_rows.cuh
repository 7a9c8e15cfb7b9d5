// The last step of notify: from counts of all ranks to the row that each token and each selection
// of this rank gets.
#pragma once

#include "cuda/expert_starts.cuh"
#include "cuda/notify_work.cuh"
#include "moe_ep/layout/placement.h"

namespace moe_ep::cuda {

// Where rows are grouped: from selections that ranks before this one make of an expert to the row
// of this rank's first. `rows`: how many each destination receives. A warp for each destination.
__device__ inline void PlaceExperts(const NotifyArguments& a, const SharedWords& words,
                                    int32_t* shared, const ExpertPlacement& placement,
                                    int64_t* rows, int warp, int lane) {
#pragma unroll 1
  for (int destination = warp; destination < words.ranks; destination += kNotifyThreads / kLanes) {
    const int64_t begin = words.ranks + placement.BeginOf(destination);
    int32_t* const before = shared + words.before_rank() + begin;
    // Past 2^31 rows nothing is sent, for no buffer has room for them.
    const int64_t received = ForEachStart(
        shared + words.received() + begin, static_cast<int>(placement.CountOf(destination)),
        a.shared.expert_alignment, lane,
        [&](int expert, int64_t start, int32_t) { before[expert] += static_cast<int32_t>(start); });
    if (lane == 0) rows[destination] = received;
  }
  __syncthreads();
}

// Rows that there is room for at the rank with the thread's number, of those there are.
__device__ __forceinline__ int64_t RoomOf(const DeviceBuffer::Inbox& inbox, int num_ranks) {
  const auto rank = static_cast<int>(threadIdx.x);
  return rank < num_ranks ? inbox.From(rank).head().room : 0;
}

// Whether every destination has room for its rows, `room` of a thread being what RoomOf gave. All
// blocks see the same.
__device__ inline bool HasRoom(const NotifyArguments& a, int num_ranks, const int64_t* rows,
                               int64_t room, uint64_t epoch) {
  const DeviceBuffer::Inbox inbox = a.buffer.InboxOf(epoch);
  const auto room_of = [&](int destination) { return inbox.From(destination).head().room; };
  const auto rank = static_cast<int>(threadIdx.x);
  const bool full = rank < num_ranks && rows[rank] > room;
  if (!__syncthreads_or(full)) return true;
  if (blockIdx.x != 0 || threadIdx.x != 0) return false;
#pragma unroll 1
  for (int destination = 0; destination < num_ranks; ++destination) {
    if (rows[destination] <= room_of(destination)) continue;
    Fail(a.patience.failure, a.reporting.capacity, destination, rows[destination],
         a.buffer.layout.capacity, room_of(destination));
    break;
  }
  return false;
}

// Rows of a run's tokens at each rank. A warp calls it.
__device__ inline void WriteHeads(const NotifyArguments& a, const SharedWords& words,
                                  const int32_t* shared, const TokenRun& run, int warp, int lane) {
  int32_t next = 0;  // row of the run's next token at the rank with this lane's number
  if (lane < words.ranks) {
    next = shared[words.rank_counts() + warp * words.ranks + lane] +
           shared[words.before_block() + lane];
    if (!a.grouped()) next += shared[words.before_rank() + lane];
  }
  const uint32_t lanes_below = (1u << lane) - 1;
#pragma unroll 1
  for (int64_t first = run.begin; first < run.end; first += kLanes) {
    const int64_t token = first + lane;
    const uint32_t ranks = token < run.end ? RanksOf(a, shared + words.rank_table(), token) : 0;
#pragma unroll 1
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
__device__ inline void WriteSlotRows(const NotifyArguments& a, const SharedWords& words,
                                     int32_t* shared, const TokenRun& run, int warp, int lane) {
  int32_t* counts = shared + words.expert_counts() + int64_t{warp} * words.experts;
  const int32_t* before_block = shared + words.before_block() + words.ranks;
  const int32_t* before_rank = shared + words.before_rank() + words.ranks;
  const uint32_t lanes_below = (1u << lane) - 1;
#pragma unroll 1
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

}  // namespace moe_ep::cuda
