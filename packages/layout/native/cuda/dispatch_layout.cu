// The dispatch layout of any number of ranks, experts and tokens, in one launch of one cluster: its
// blocks are resident together, so they can agree that all ids are valid before any of them writes.
// Counts go to the outputs at once; narrow_layout.cu is quicker where they fit shared memory.
#include <cooperative_groups.h>

#include <bit>

#include "cuda/layout.h"
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
constexpr unsigned long long kNone = ~0ull;

// Whether this lane is the lowest of `among`, where it is one, with this value, a number of `bits`
// bits. All lanes of the warp call it.
__device__ __forceinline__ bool IsFirstWith(int64_t value, int bits, uint32_t among, int lane) {
  for (int bit = 0; bit < bits; ++bit) {
    const bool set = (value >> bit & 1) != 0;
    const uint32_t lanes = __ballot_sync(kAllLanes, set);
    among &= set ? lanes : ~lanes;
  }
  return __ffs(among) == lane + 1;
}

// A token has 2^slot_bits lanes of a warp, at least one for each of its ids.
template <typename Id>
__global__ void __cluster_dims__(kBlocks, 1, 1) __launch_bounds__(kThreads)
    DispatchLayoutKernel(const Id* __restrict__ ids, DispatchLayout layout, int slot_bits,
                         int rank_bits, moe_ep_describe_failure describe,
                         moe_ep_failure_record* failure) {
  __shared__ unsigned long long lowest_invalid;  // position in ids

  const cg::cluster_group cluster = cg::this_cluster();
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  constexpr int64_t threads = static_cast<int64_t>(kBlocks) * kThreads;
  const int lane = threadIdx.x % kLanes;
  const bool failed_before = Failed(failure);
  const int64_t experts = layout.placement.experts;
  const int64_t ranks = layout.placement.ranks;
  const int64_t nodes = layout.num_nodes();

  if (threadIdx.x == 0) lowest_invalid = kNone;
  __syncthreads();

  unsigned long long invalid = kNone;
#pragma unroll 4
  for (int64_t i = thread; i < layout.num_tokens * layout.num_topk; i += threads) {
    // Positions ascend: the first one is the thread's lowest.
    if (IsInvalidId(ids[i], experts) && invalid == kNone) invalid = i;
  }
  if (invalid != kNone) atomicMin(&lowest_invalid, invalid);
  cluster.sync();

  // Every warp looks at what all blocks have found.
  if (lane < kBlocks) invalid = *cluster.map_shared_rank(&lowest_invalid, lane);
  if (failed_before || __any_sync(kAllLanes, invalid != kNone)) {
    cluster.sync();  // a block's shared memory stays until the others have read it
    if (failed_before || thread >= kLanes) return;
    for (int offset = kLanes / 2; offset > 0; offset /= 2)
      invalid = min(invalid, __shfl_xor_sync(kAllLanes, invalid, offset));
    if (lane == 0) {
      const int64_t position = static_cast<int64_t>(invalid);
      Fail(failure, describe, experts, ids[position], position / layout.num_topk,
           position % layout.num_topk);
    }
    return;
  }

  for (int64_t i = thread; i < experts; i += threads) layout.num_tokens_per_expert[i] = 0;
  for (int64_t i = thread; i < ranks; i += threads) layout.num_tokens_per_rank[i] = 0;
  for (int64_t i = thread; i < nodes; i += threads) layout.num_tokens_per_rdma_rank[i] = 0;
  cluster.sync();

  const int slot = lane & ((1 << slot_bits) - 1);
  const uint32_t lanes_of_token = (kAllLanes >> (kLanes - (1 << slot_bits))) << (lane - slot);
  const int tokens_per_warp = kLanes >> slot_bits;
  const int64_t tokens_per_pass = threads >> slot_bits;
  for (int64_t first = thread / kLanes * tokens_per_warp; first < layout.num_tokens;
       first += tokens_per_pass) {
    const int64_t row = lane >> slot_bits;  // of the warp's tokens
    const int64_t rows = min(static_cast<int64_t>(tokens_per_warp), layout.num_tokens - first);
    uint8_t* in_rank = layout.is_token_in_rank + first * ranks;
    for (int64_t i = lane; i < rows * ranks; i += kLanes) in_rank[i] = 0;

    int64_t expert = -1;
    if (slot < layout.num_topk && row < rows) expert = ids[(first + row) * layout.num_topk + slot];
    const bool selected = expert >= 0;
    int64_t rank = 0;
    if (selected) {
      rank = layout.placement.RankOf(expert);
      atomicAdd(&layout.num_tokens_per_expert[expert], 1);
    }
    const uint32_t selected_lanes = lanes_of_token & __ballot_sync(kAllLanes, selected);
    const bool first_in_rank = IsFirstWith(rank, rank_bits, selected_lanes, lane);
    __syncwarp();  // the zeros are written before the ones
    if (selected && first_in_rank) {
      in_rank[row * ranks + rank] = 1;
      atomicAdd(&layout.num_tokens_per_rank[rank], 1);
    }
    if (nodes > 0) {
      const int64_t node = rank / layout.ranks_per_node;
      const bool first_in_node = IsFirstWith(node, rank_bits, selected_lanes, lane);
      if (selected && first_in_node) atomicAdd(&layout.num_tokens_per_rdma_rank[node], 1);
    }
  }
}

template <typename Id>
void Run(const Exec& exec, const Id* ids, const DispatchLayout& layout) {
  const auto bits_below = [](int64_t count) {
    return static_cast<int>(std::bit_width(static_cast<uint64_t>(count - 1)));
  };
  Launch(DispatchLayoutKernel<Id>, {kBlocks, kThreads}, exec.cuda_stream(), ids, layout,
         bits_below(layout.num_topk), bits_below(layout.placement.ranks), DescribeInvalidId,
         exec.cuda_failure());
}

}  // namespace

void GetDispatchLayout(const Exec& exec, const TopkIds& topk_idx, const DispatchLayout& layout) {
  if (GetNarrowDispatchLayout(exec, topk_idx, layout)) return;
  if (topk_idx.wide) {
    Run(exec, static_cast<const int64_t*>(topk_idx.data), layout);
  } else {
    Run(exec, static_cast<const int32_t*>(topk_idx.data), layout);
  }
}

}  // namespace moe_ep::cuda
