// What all steps of notify work on: the kernel's arguments, what its blocks keep in shared memory,
// and which tokens each warp has.
//
// Most loops of notify turn once, and all of it is run through once, so that its instructions come
// from memory: such loops are not unrolled.
#pragma once

#include "cuda/device_buffer.cuh"
#include "cuda/meeting.cuh"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {

inline constexpr int kNotifyBlocks = 8;  // the largest cluster that is portable
inline constexpr int kNotifyThreads = 1024;

struct NotifyPointers {
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
  NotifyPointers out;
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

// Calls use(slot, id) for the selections of a token. Several ids are asked for before any is used.
template <typename Use>
__device__ __forceinline__ void ForIdsOf(const NotifyArguments& a, int64_t token, const Use& use) {
  constexpr int kTogether = 8;
  const int64_t begin = token * a.topk;
  const auto topk = static_cast<int>(a.topk);
#pragma unroll 1
  for (int first = 0; first < topk; first += kTogether) {
    int64_t ids[kTogether];
    const auto load = [&](const auto* from) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) ids[i] = first + i < topk ? from[begin + first + i] : -1;
    };
    if (a.ids.wide) {
      load(static_cast<const int64_t*>(a.ids.data));
    } else {
      load(static_cast<const int32_t*>(a.ids.data));
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (first + i < topk) use(begin + first + i, ids[i]);
  }
}

// Ranks of a token as bits. Ids that are none count as nothing here; they are found by whoever
// counts experts.
__device__ __forceinline__ uint32_t RanksOf(const NotifyArguments& a, const int32_t* rank_table,
                                            int64_t token) {
  uint32_t ranks = 0;
  ForIdsOf(a, token, [&](int64_t, int64_t expert) {
    if (expert >= 0 && expert < a.shared.experts) ranks |= 1u << rank_table[expert];
  });
  return ranks;
}

struct TokenRun {
  int64_t begin, end;
};

// The tokens of a warp. Runs ascend with blocks, then warps.
__device__ __forceinline__ TokenRun RunOf(const NotifyArguments& a, int block, int warp) {
  const auto runs = static_cast<uint32_t>(kNotifyBlocks * a.warps);
  const int64_t length = (static_cast<uint32_t>(a.tokens) + runs - 1) / runs;
  const int64_t begin = min((int64_t{block} * a.warps + warp) * length, a.tokens);
  return {begin, min(begin + length, a.tokens)};
}

}  // namespace moe_ep::cuda
