// The dispatch layout in one launch of one cluster: its blocks are resident together, so they can
// agree that all ids are valid before any of them writes, and add up their counts in shared memory
// without scratch memory or a second kernel.
#include <cooperative_groups.h>

#include <bit>

#include "cuda/layout.h"
#include "invalid_id.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kBlocks = 8;  // the largest cluster that is portable
constexpr int kThreads = 1024;
constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int64_t kMaxSharedBytes = 200 << 10;
constexpr unsigned long long kNone = ~0ull;

// Where selections are counted: in each block's shared memory, or in the outputs at once where
// there are too many of them.
struct Counters {
  int32_t* per_expert;
  int32_t* per_rank;
  int32_t* per_node;
};

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
template <typename Id, bool kCountInShared>
__global__ void __cluster_dims__(kBlocks, 1, 1) __launch_bounds__(kThreads)
    DispatchLayoutKernel(const Id* __restrict__ ids, DispatchLayout layout, int slot_bits,
                         int rank_bits, moe_ep_describe_failure describe,
                         moe_ep_failure_record* failure) {
  extern __shared__ int32_t shared[];
  __shared__ unsigned long long lowest_invalid;  // position in ids

  const cg::cluster_group cluster = cg::this_cluster();
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  constexpr int64_t threads = static_cast<int64_t>(kBlocks) * kThreads;
  const int lane = threadIdx.x % kLanes;
  const bool failed_before = Failed(failure);
  const int64_t experts = layout.placement.experts;
  const int64_t ranks = layout.placement.ranks;
  const int64_t nodes = layout.num_nodes();

  Counters counters;
  [[maybe_unused]] int32_t* rank_of = nullptr;
  if (threadIdx.x == 0) lowest_invalid = kNone;
  if constexpr (kCountInShared) {
    counters = {shared, shared + experts, shared + experts + ranks};
    rank_of = shared + experts + ranks + nodes;
    for (int64_t i = threadIdx.x; i < experts + ranks + nodes; i += kThreads) shared[i] = 0;
    for (int64_t expert = threadIdx.x; expert < experts; expert += kThreads)
      rank_of[expert] = static_cast<int32_t>(layout.placement.RankOf(expert));
  } else {
    counters = {layout.num_tokens_per_expert, layout.num_tokens_per_rank,
                layout.num_tokens_per_rdma_rank};
  }
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

  if constexpr (!kCountInShared) {
    for (int64_t i = thread; i < experts; i += threads) counters.per_expert[i] = 0;
    for (int64_t i = thread; i < ranks; i += threads) counters.per_rank[i] = 0;
    for (int64_t i = thread; i < nodes; i += threads) counters.per_node[i] = 0;
    cluster.sync();
  }

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
      rank = kCountInShared ? rank_of[expert] : layout.placement.RankOf(expert);
      atomicAdd(&counters.per_expert[expert], 1);
    }
    const uint32_t selected_lanes = lanes_of_token & __ballot_sync(kAllLanes, selected);
    const bool first_in_rank = IsFirstWith(rank, rank_bits, selected_lanes, lane);
    __syncwarp();  // the zeros are written before the ones
    if (selected && first_in_rank) {
      in_rank[row * ranks + rank] = 1;
      atomicAdd(&counters.per_rank[rank], 1);
    }
    if (nodes > 0) {
      const int64_t node = rank / layout.ranks_per_node;
      const bool first_in_node = IsFirstWith(node, rank_bits, selected_lanes, lane);
      if (selected && first_in_node) atomicAdd(&counters.per_node[node], 1);
    }
  }

  if constexpr (kCountInShared) {
    cluster.sync();
    for (int64_t i = thread; i < experts + ranks + nodes; i += threads) {
      int32_t sum = 0;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        sum += cluster.map_shared_rank(shared, block)[i];
      if (i < experts) {
        layout.num_tokens_per_expert[i] = sum;
      } else if (i < experts + ranks) {
        layout.num_tokens_per_rank[i - experts] = sum;
      } else {
        layout.num_tokens_per_rdma_rank[i - experts - ranks] = sum;
      }
    }
    cluster.sync();  // a block's shared memory stays until the others have read it
  }
}

template <typename Id>
void Run(const Exec& exec, const Id* ids, const DispatchLayout& layout) {
  const auto [experts, ranks] = layout.placement;
  // Counts, and the rank of each expert.
  const int64_t shared_bytes =
      (experts + ranks + layout.num_nodes() + experts) * static_cast<int64_t>(sizeof(int32_t));
  const bool count_in_shared = shared_bytes <= kMaxSharedBytes;
  const LaunchShape shape = {kBlocks, kThreads, count_in_shared ? shared_bytes : 0};
  const auto bits_below = [](int64_t count) {
    return static_cast<int>(std::bit_width(static_cast<uint64_t>(count - 1)));
  };
  Launch(count_in_shared ? DispatchLayoutKernel<Id, true> : DispatchLayoutKernel<Id, false>, shape,
         exec.cuda_stream(), ids, layout, bits_below(layout.num_topk), bits_below(ranks),
         DescribeInvalidId, exec.cuda_failure());
}

}  // namespace

void GetDispatchLayout(const Exec& exec, const TopkIds& topk_idx, const DispatchLayout& layout) {
  if (topk_idx.wide) {
    Run(exec, static_cast<const int64_t*>(topk_idx.data), layout);
  } else {
    Run(exec, static_cast<const int32_t*>(topk_idx.data), layout);
  }
}

}  // namespace moe_ep::cuda
