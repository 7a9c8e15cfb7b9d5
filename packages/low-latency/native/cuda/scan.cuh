// Which tokens of all sources have what a block looks for, and the how-manieth each is.
#pragma once

#include "cuda/device_buffer.cuh"

namespace moe_ep::cuda {

// A bit for each token, in the order of sources, then tokens. A source's bits begin in a word of
// their own.
struct Scan {
  static constexpr int kMostWords = kMostRanks * 1024 / kLanes;

  int words_of_source;
  int num_words;
  uint32_t bits[kMostWords];
  int before[kMostWords + 1];  // tokens found in the words before

  __device__ int total() const { return before[num_words]; }
  __device__ int FirstOf(int source) const { return before[source * words_of_source]; }

  // `has(source, token)`; tokens a source has not are asked for, too. All threads of the block call
  // it, and it ends with a barrier.
  template <typename Has>
  __device__ void Run(int ranks, int most_tokens, const Has& has) {
    const int of_source = (most_tokens + kLanes - 1) / kLanes;
    const int words = ranks * of_source;
    const int lane = threadIdx.x % kLanes;
    const int warp = threadIdx.x / kLanes;
#pragma unroll 2
    for (int word = warp; word < words; word += kWarps) {
      const int source = word / of_source;
      const bool found = has(source, (word - source * of_source) * kLanes + lane);
      const uint32_t ballot = __ballot_sync(kAllLanes, found);
      if (lane == 0) bits[word] = ballot;
    }
    __syncthreads();
    if (warp == 0) {
      int sum = 0;
#pragma unroll 1
      for (int first = 0; first < words; first += kLanes) {
        const int word = first + lane;
        const int own = word < words ? __popc(bits[word]) : 0;
        const int through = InclusiveSum(own, lane);
        if (word < words) before[word] = sum + through - own;
        sum += __shfl_sync(kAllLanes, through, kLanes - 1);
      }
      if (lane == 0) {
        before[words] = sum;
        words_of_source = of_source;
        num_words = words;
      }
    }
    __syncthreads();
  }
};

}  // namespace moe_ep::cuda
