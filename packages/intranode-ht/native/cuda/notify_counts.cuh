// The counting half of notify: how many tokens each rank and selections each expert gets of this
// rank, in all and before each warp.
//
// Each warp counts a run of tokens in shared memory. Prefix sums over warps, then blocks, say what
// comes before each: nothing depends on which warp is faster.
#pragma once

#include <cooperative_groups.h>

#include "cuda/notify_work.cuh"

namespace moe_ep::cuda {

inline constexpr unsigned long long kNoSlot = ~0ull;

// Whole warps go together; lanes past the end have a token of no rank.
__device__ inline void CountRun(const NotifyArguments& a, const SharedWords& words, int32_t* shared,
                                const TokenRun& run, int warp, int lane,
                                unsigned long long* lowest_invalid) {
  int32_t* experts = shared + words.expert_counts() + (words.grouped ? warp * words.experts : 0);
  int32_t* channels = shared + words.channel_counts();
  const auto channels_of_tokens = static_cast<uint32_t>(words.channels);
  const auto per_channel = static_cast<int>(
      max(1u, (static_cast<uint32_t>(a.tokens) + channels_of_tokens - 1) / channels_of_tokens));
  int32_t tokens_of_rank = 0;  // of the rank with this lane's number
#pragma unroll 1
  for (int64_t first = run.begin; first < run.end; first += kLanes) {
    const int64_t token = first + lane;
    uint32_t ranks = 0;
    if (token < run.end) {
      ForIdsOf(a, token, [&](int64_t slot, int64_t expert) {
        if (IsInvalidId(expert, a.shared.experts)) {
          atomicMin(lowest_invalid, static_cast<unsigned long long>(slot));
        } else if (expert >= 0) {
          atomicAdd(&experts[expert], 1);
          ranks |= 1u << shared[words.rank_table() + expert];
        }
      });
    }
    // Most warps' tokens are all of one channel: then one lane counts them.
    const int channel = static_cast<int>(token) / per_channel;
    const bool same = __shfl_sync(kAllLanes, channel, 0) == channel || token >= run.end;
    const bool one_channel = __all_sync(kAllLanes, same) != 0;
    const int of_first = __shfl_sync(kAllLanes, channel, 0);
#pragma unroll 1
    for (int rank = 0; rank < words.ranks; ++rank) {
      const uint32_t lanes = __ballot_sync(kAllLanes, (ranks >> rank & 1) != 0);
      if (lane != rank || lanes == 0) continue;
      tokens_of_rank += __popc(lanes);
      if (one_channel) atomicAdd(&channels[rank * words.channels + of_first], __popc(lanes));
    }
    if (one_channel) continue;
#pragma unroll 1
    for (uint32_t left = ranks; left != 0; left &= left - 1)
      atomicAdd(&channels[(__ffs(left) - 1) * words.channels + channel], 1);
  }
  if (lane < words.ranks) shared[words.rank_counts() + warp * words.ranks + lane] = tokens_of_rank;
}

// Counts of warps become those of the warps before, and the block's totals are left.
__device__ inline void ScanWarps(const SharedWords& words, int32_t* shared) {
#pragma unroll 1
  for (int column = threadIdx.x; column < words.ranks + words.experts; column += kNotifyThreads) {
    const bool rank = column < words.ranks;
    int32_t* counts = rank ? shared + words.rank_counts() + column
                           : shared + words.expert_counts() + (column - words.ranks);
    const int stride = rank ? words.ranks : words.experts;
    const int rows = rank ? words.warps : static_cast<int>(words.expert_tables());
    int32_t sum = 0;
    // Several at a time: a look at shared memory takes long, too.
    constexpr int kTogether = 8;
#pragma unroll 1
    for (int first = 0; first < rows; first += kTogether, counts += kTogether * stride) {
      int32_t count[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) count[i] = first + i < rows ? counts[i * stride] : 0;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (first + i < rows) counts[i * stride] = sum;
        sum += count[i];
      }
    }
    shared[words.block_totals() + column] = sum;
  }
}

struct Found {
  bool may_begin;
  unsigned long long invalid;  // lowest position of an id that is none, kNoSlot without
};

// Adds up the blocks' totals and what they have found. No block looks at another's shared memory
// afterwards.
__device__ inline Found GatherBlocks(const SharedWords& words, int32_t* shared, Found* found) {
  const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  cluster.sync();
  const auto block = static_cast<int>(blockIdx.x);
#pragma unroll 1
  for (int column = threadIdx.x; column < words.columns(); column += kNotifyThreads) {
    int32_t before = 0;
    int32_t total = 0;
#pragma unroll
    for (int other = 0; other < kNotifyBlocks; ++other) {
      const int32_t count = cluster.map_shared_rank(shared, other)[words.block_totals() + column];
      if (other < block) before += count;
      total += count;
    }
    shared[words.before_block() + column] = before;
    shared[words.totals() + column] = total;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < words.ranks * words.channels; i += kNotifyThreads) {
    int32_t total = 0;
#pragma unroll
    for (int other = 0; other < kNotifyBlocks; ++other)
      total += cluster.map_shared_rank(shared, other)[words.channel_counts() + i];
    shared[words.channel_totals() + i] = total;
  }
  Found all = *cluster.map_shared_rank(found, 0);
#pragma unroll
  for (int other = 1; other < kNotifyBlocks; ++other)
    all.invalid = min(all.invalid, cluster.map_shared_rank(found, other)->invalid);
  cluster.sync();
  // Of each rank: tokens of its channels up to each. A warp for a rank.
  const auto lane = static_cast<int>(threadIdx.x % kLanes);
#pragma unroll 1
  for (int rank = threadIdx.x / kLanes; rank < words.ranks; rank += kNotifyThreads / kLanes) {
    int32_t* const counts = shared + words.channel_totals() + rank * words.channels;
    int32_t before = 0;
#pragma unroll 1
    for (int first = 0; first < words.channels; first += kLanes) {
      const int channel = first + lane;
      const int32_t own = channel < words.channels ? counts[channel] : 0;
      const int32_t sum = before + InclusiveSum(own, lane);
      if (channel < words.channels) counts[channel] = sum;
      before = __shfl_sync(kAllLanes, sum, kLanes - 1);
    }
  }
  __syncthreads();
  return all;
}

}  // namespace moe_ep::cuda
