#include "cuda/layout.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/lanes.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr int kColumnThreads = 128;
constexpr int kWarps = 32;

// A thread sums up a column.
__global__ void __launch_bounds__(kColumnThreads)
    RankPrefixKernel(const int32_t* __restrict__ counts, int64_t ranks, int32_t* __restrict__ out,
                     const moe_ep_failure_record* failure) {
  const bool failed = Failed(failure);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (failed || column >= ranks) return;
  int32_t sum = 0;
#pragma unroll 8
  for (int64_t row = 0; row < ranks; ++row) {
    sum += counts[row * ranks + column];
    out[row * ranks + column] = sum;
  }
}

// A block has one rank. It takes up to as many channels at a time as it has warps, several warps a
// channel when there are fewer, and its first warp adds them up in their order.
__global__ void __launch_bounds__(kWarps* kLanes)
    ChannelPrefixKernel(const uint8_t* __restrict__ in_rank, int64_t num_tokens, int64_t ranks,
                        int64_t channels, int32_t* __restrict__ out,
                        const moe_ep_failure_record* failure) {
  __shared__ int32_t counts[kWarps];
  const bool failed = Failed(failure);
  const int64_t rank = blockIdx.x;
  const int warp = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int width = channels < kWarps ? static_cast<int>(channels) : kWarps;
  const int warps_of_channel = kWarps / width;
  const int64_t tokens_per_channel = (num_tokens + channels - 1) / channels;
  int32_t before = 0;  // of the channels of earlier rounds
  if (failed) return;

  for (int64_t first = 0; first < channels; first += width) {
    if (threadIdx.x < kWarps) counts[threadIdx.x] = 0;
    __syncthreads();
    const int64_t channel = first + warp / warps_of_channel;
    if (warp < width * warps_of_channel && channel < channels) {
      const int64_t end = min((channel + 1) * tokens_per_channel, num_tokens);
      int32_t count = 0;
#pragma unroll 8
      for (int64_t token = channel * tokens_per_channel + warp % warps_of_channel * kLanes + lane;
           token < end; token += warps_of_channel * kLanes)
        count += in_rank[token * ranks + rank];
      count = static_cast<int32_t>(__reduce_add_sync(kAllLanes, count));
      if (lane == 0) atomicAdd(&counts[warp / warps_of_channel], count);
    }
    __syncthreads();
    if (warp == 0) {
      const int32_t sum = before + InclusiveSum(counts[lane], lane);
      if (lane < width && first + lane < channels) out[rank * channels + first + lane] = sum;
      before = __shfl_sync(kAllLanes, sum, kLanes - 1);
    }
    __syncthreads();  // read before the next round clears them
  }
}

}  // namespace

void GetRankPrefixMatrix(const Exec& exec, const int32_t* num_tokens_per_rank, int64_t ranks,
                         int32_t* out) {
  const auto blocks = static_cast<unsigned>((ranks + kColumnThreads - 1) / kColumnThreads);
  Launch(RankPrefixKernel, {blocks, kColumnThreads}, exec.cuda_stream(), num_tokens_per_rank, ranks,
         out, exec.cuda_skip());
}

void GetChannelPrefixMatrix(const Exec& exec, const uint8_t* is_token_in_rank, int64_t num_tokens,
                            int64_t ranks, int64_t channels, int32_t* out) {
  Launch(ChannelPrefixKernel, {static_cast<unsigned>(ranks), kWarps * kLanes}, exec.cuda_stream(),
         is_token_in_rank, num_tokens, ranks, channels, out, exec.cuda_skip());
}

}  // namespace moe_ep::cuda
