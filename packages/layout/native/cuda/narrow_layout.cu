// One launch of one cluster, and one meeting of its blocks: each counts its tokens in shared memory
// and keeps the ranks of each token as bits in a register; when all have found their ids valid,
// they add up each other's counts and write.
#include <cooperative_groups.h>

#include <bit>
#include <limits>

#include "cuda/narrow_layout.h"
#include "invalid_id.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/lanes.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kBlocks = 8;  // the largest cluster that is portable
constexpr int kThreads = 1024;
constexpr int kWarps = kBlocks * kThreads / kLanes;
// Passes over the tokens whose ranks stay in registers; those of later ones are computed again.
constexpr int kKept = 4;
constexpr int kMaxRanks = 64;
constexpr int64_t kMaxSharedBytes = 200 << 10;
constexpr int kNone = std::numeric_limits<int>::max();

struct NarrowLayout {
  int num_tokens;
  int topk;
  int experts;
  int ranks;
  int nodes;
  int ranks_per_node;
  // Linear placement: experts below `in_large` are on ranks that own one more than `small`.
  int small;
  int large_ranks;
  int in_large;
  int slot_bits;  // a token has 2^slot_bits lanes of a warp, at least one for each of its ids
  int32_t* num_tokens_per_rank;
  int32_t* num_tokens_per_rdma_rank;
  int32_t* num_tokens_per_expert;
  uint8_t* is_token_in_rank;

  __device__ int RankOf(int expert) const {
    if (expert < in_large) return static_cast<unsigned>(expert) / static_cast<unsigned>(small + 1);
    return large_ranks +
           static_cast<unsigned>(expert - in_large) / static_cast<unsigned>(max(small, 1));
  }
  __device__ int Counters() const { return experts + ranks + nodes; }
};

// What a lane sees of the tokens in one pass of its warp.
struct Lane {
  int token;     // of this lane
  int position;  // of this lane's id; -1: it has none

  __device__ Lane(const NarrowLayout& layout, int warp, int lane, int pass) {
    const int per_warp = kLanes >> layout.slot_bits;
    const int slot = lane & ((1 << layout.slot_bits) - 1);
    token = (pass * kWarps + warp) * per_warp + (lane >> layout.slot_bits);
    position = token < layout.num_tokens && slot < layout.topk ? token * layout.topk + slot : -1;
  }
};

// The ranks of this lane's token, as bits.
__device__ uint64_t RanksOfToken(const NarrowLayout& layout, int expert) {
  uint64_t ranks = expert >= 0 ? uint64_t{1} << layout.RankOf(expert) : 0;
  for (int offset = 1; offset < 1 << layout.slot_bits; offset *= 2)
    ranks |= __shfl_xor_sync(kAllLanes, ranks, offset);
  return ranks;
}

// The bits of one node's ranks.
__device__ uint64_t RanksOfNode(const NarrowLayout& layout, int node) {
  if (node >= layout.nodes) return 0;
  const int begin = node * layout.ranks_per_node;
  const int end = min(begin + layout.ranks_per_node, layout.ranks);
  return (~uint64_t{0} >> (64 - (end - begin))) << begin;
}

template <typename Id>
__global__ void __cluster_dims__(kBlocks, 1, 1) __launch_bounds__(kThreads)
    NarrowLayoutKernel(const Id* __restrict__ ids, const __grid_constant__ NarrowLayout layout,
                       int passes, moe_ep_describe_failure describe,
                       moe_ep_failure_record* failure) {
  extern __shared__ int32_t counts[];  // per expert, per rank, per node
  __shared__ int lowest_invalid;       // position in ids

  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = blockIdx.x * kThreads + threadIdx.x;
  const int warp = thread / kLanes;
  const int lane = threadIdx.x % kLanes;
  const bool failed_before = Failed(failure);

  Id kept_ids[kKept];
#pragma unroll
  for (int pass = 0; pass < kKept; ++pass) {
    const Lane at(layout, warp, lane, pass);
    kept_ids[pass] = at.position < 0 ? Id{-1} : ids[at.position];
  }
  if (threadIdx.x == 0) lowest_invalid = kNone;
  for (int i = threadIdx.x; i < layout.Counters(); i += kThreads) counts[i] = 0;
  __syncthreads();

  int32_t* const per_rank = counts + layout.experts;
  int32_t* const per_node = per_rank + layout.ranks;
  const uint64_t node_low = RanksOfNode(layout, lane);
  const uint64_t node_high = RanksOfNode(layout, lane + kLanes);
  int rank_counts[2] = {0, 0};  // of ranks `lane` and `lane + 32`, among this warp's tokens
  int node_counts[2] = {0, 0};
  uint64_t kept_ranks[kKept];
  const auto count = [&](int pass, Id id) {
    const bool valid = id >= 0 && id < layout.experts;
    if (id != -1 && !valid) atomicMin(&lowest_invalid, Lane(layout, warp, lane, pass).position);
    if (valid) atomicAdd(&counts[static_cast<int>(id)], 1);
    const uint64_t ranks = RanksOfToken(layout, valid ? static_cast<int>(id) : -1);
    for (int first = 0; first < kLanes; first += 1 << layout.slot_bits) {
      const uint64_t of_token = __shfl_sync(kAllLanes, ranks, first);
      rank_counts[0] += static_cast<int>(of_token >> lane) & 1;
      rank_counts[1] += static_cast<int>(of_token >> 32 >> lane) & 1;
      node_counts[0] += (of_token & node_low) != 0;
      node_counts[1] += (of_token & node_high) != 0;
    }
    return ranks;
  };
#pragma unroll
  for (int pass = 0; pass < kKept; ++pass) kept_ranks[pass] = count(pass, kept_ids[pass]);
  for (int pass = kKept; pass < passes; ++pass) {
    const int position = Lane(layout, warp, lane, pass).position;
    count(pass, position < 0 ? Id{-1} : ids[position]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int index = lane + half * kLanes;
    if (index < layout.ranks && rank_counts[half] != 0)
      atomicAdd(&per_rank[index], rank_counts[half]);
    if (index < layout.nodes && node_counts[half] != 0)
      atomicAdd(&per_node[index], node_counts[half]);
  }
  cluster.sync();

  // Every warp looks at what all blocks have found.
  int invalid = lane < kBlocks ? *cluster.map_shared_rank(&lowest_invalid, lane) : kNone;
  invalid = __reduce_min_sync(kAllLanes, invalid);
  if (!failed_before && invalid == kNone) {
    for (int i = thread; i < layout.Counters(); i += kBlocks * kThreads) {
      int32_t sum = 0;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        sum += cluster.map_shared_rank(counts, block)[i];
      if (i < layout.experts) {
        layout.num_tokens_per_expert[i] = sum;
      } else if (i < layout.experts + layout.ranks) {
        layout.num_tokens_per_rank[i - layout.experts] = sum;
      } else {
        layout.num_tokens_per_rdma_rank[i - layout.experts - layout.ranks] = sum;
      }
    }
    const auto write = [&](int pass, uint64_t ranks) {
      const Lane at(layout, warp, lane, pass);
      if (at.token >= layout.num_tokens) return;
      const int lanes = 1 << layout.slot_bits;
      uint8_t* row = layout.is_token_in_rank + static_cast<int64_t>(at.token) * layout.ranks;
      for (int rank = lane & (lanes - 1); rank < layout.ranks; rank += lanes)
        row[rank] = static_cast<uint8_t>(ranks >> rank & 1);
    };
#pragma unroll
    for (int pass = 0; pass < kKept; ++pass) write(pass, kept_ranks[pass]);
    for (int pass = kKept; pass < passes; ++pass) {
      const int position = Lane(layout, warp, lane, pass).position;
      write(pass, RanksOfToken(layout, position < 0 ? -1 : static_cast<int>(ids[position])));
    }
  } else if (!failed_before && thread == 0) {
    Fail(failure, describe, layout.experts, static_cast<int64_t>(ids[invalid]),
         invalid / layout.topk, invalid % layout.topk);
  }
  cluster.sync();  // a block's shared memory stays until the others have read it
}

}  // namespace

bool GetNarrowDispatchLayout(const Exec& exec, const TopkIds& topk_idx,
                             const DispatchLayout& layout) {
  const int64_t experts = layout.placement.experts;
  const int64_t ranks = layout.placement.ranks;
  const int64_t shared_bytes =
      (experts + ranks + layout.num_nodes()) * static_cast<int64_t>(sizeof(int32_t));
  // Positions, those past the end included, are 32-bit.
  const bool narrow = ranks <= kMaxRanks && shared_bytes <= kMaxSharedBytes &&
                      layout.num_tokens * layout.num_topk < (int64_t{1} << 30);
  if (!narrow) return false;
  const int slot_bits =
      static_cast<int>(std::bit_width(static_cast<uint64_t>(layout.num_topk - 1)));
  const NarrowLayout small = {
      .num_tokens = static_cast<int>(layout.num_tokens),
      .topk = static_cast<int>(layout.num_topk),
      .experts = static_cast<int>(experts),
      .ranks = static_cast<int>(ranks),
      .nodes = static_cast<int>(layout.num_nodes()),
      .ranks_per_node = static_cast<int>(layout.ranks_per_node),
      .small = static_cast<int>(experts / ranks),
      .large_ranks = static_cast<int>(experts % ranks),
      .in_large = static_cast<int>(experts % ranks * (experts / ranks + 1)),
      .slot_bits = slot_bits,
      .num_tokens_per_rank = layout.num_tokens_per_rank,
      .num_tokens_per_rdma_rank = layout.num_tokens_per_rdma_rank,
      .num_tokens_per_expert = layout.num_tokens_per_expert,
      .is_token_in_rank = layout.is_token_in_rank,
  };
  const int per_pass = kWarps * (kLanes >> slot_bits);
  const int passes = (small.num_tokens + per_pass - 1) / per_pass;
  const LaunchShape shape = {kBlocks, kThreads, shared_bytes};
  if (topk_idx.wide) {
    Launch(NarrowLayoutKernel<int64_t>, shape, exec.cuda_stream(),
           static_cast<const int64_t*>(topk_idx.data), small, passes, DescribeInvalidId,
           exec.cuda_failure());
  } else {
    Launch(NarrowLayoutKernel<int32_t>, shape, exec.cuda_stream(),
           static_cast<const int32_t*>(topk_idx.data), small, passes, DescribeInvalidId,
           exec.cuda_failure());
  }
  return true;
}

}  // namespace moe_ep::cuda
