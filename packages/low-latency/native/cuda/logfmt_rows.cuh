// Results as LogFMT-10 on their way home: pieces of rows encoded by a warp, and decoded there
// before the sum. In a result codes come first, and the ranges of groups behind them.
#pragma once

#include "cuda/device_buffer.cuh"
#include "cuda/weighted_sum.cuh"
#include "moe_ep/quant/logfmt.cuh"
#include "row_format.h"

namespace moe_ep::cuda {

// Of a block that encodes pieces of kItems vectors of 8 elements a lane.
template <int kItems>
struct LogShared {
  static constexpr int kItemBytes = kLanes * 10;

  float table[Log2Table::kEntries];
  uint4 staged[kWarps][kItems * kItemBytes / 16];

  // All threads of the block call it; a barrier must follow.
  __device__ void FillTable() {
    for (int i = threadIdx.x; i < Log2Table::kEntries; i += kThreads)
      table[i] = Log2Table::Entry(i);
  }
};

// Writes a piece of a row: the `at`-th vector and those kLanes apart, zeros behind the row's end. A
// warp calls it.
template <int kItems>
__device__ __forceinline__ void PutLogPiece(const uint4 (&v)[kItems], int at, int hidden, void* to,
                                            LogShared<kItems>* shared) {
  using Vector = LaneVector<BF16Element, 8>;
  using Warp = WarpItems<16, kItems>;
  constexpr int kItemBytes = LogShared<kItems>::kItemBytes;
  const int lane = threadIdx.x % kLanes;
  auto* const row = static_cast<uint8_t*>(to);
  uint4* const staged = shared->staged[threadIdx.x / kLanes];
  Vector items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) items[i] = {{v[i].x, v[i].y, v[i].z, v[i].w}};
  const uint32_t range =
      EncodeLogItems(items, shared->table, [&](int i, const uint32_t (&packed)[3]) {
        StoreTenBytes(reinterpret_cast<uint8_t*>(staged) + i * kItemBytes + lane * 10, packed);
      });
  __syncwarp();
  // Whole vectors, and what is left at the end of a row by twos.
  const int first = at - lane;
  const int bytes = min(kItems * kItemBytes, static_cast<int>(LogCodeBytes(hidden)) - first * 10);
  uint8_t* const codes = row + first * 10;
#pragma unroll
  for (int q = 0; q < kItems * kItemBytes / 16; q += kLanes)
    if ((q + lane + 1) * 16 <= bytes) reinterpret_cast<uint4*>(codes)[q + lane] = staged[q + lane];
  const int half = bytes / 16 * 8 + lane;
  if (half * 2 < bytes)
    reinterpret_cast<uint16_t*>(codes)[half] = reinterpret_cast<const uint16_t*>(staged)[half];
  const int group = first / 16 + Warp::FirstOwned(lane) * 2 + Warp::GroupOf(lane);
  if (Warp::Writes(lane) && group < NumGroups(hidden))
    reinterpret_cast<uint32_t*>(row + LogRangesOffset(hidden))[group] = range;
  __syncwarp();  // before the next piece takes the shared memory
}

// Up to kAtOnce rows of a token, a vector of 8 columns a lane. A warp calls all of it.
template <int kAtOnce>
class LogTerms {
 public:
  // `at`: the lane's vector.
  __device__ LogTerms(int hidden, int at) : hidden_(hidden), at_(at) {}

  // Asks for the i-th row.
  __device__ __forceinline__ void Ask(int i, const uint16_t* result) {
    const auto* const row = reinterpret_cast<const uint8_t*>(result);
    if (at_ * 8 < hidden_) {
      // The words that the lane's 10 bytes lie in. Behind the last codes ranges begin.
      const auto* const words = reinterpret_cast<const uint32_t*>(row + (at_ * 10 & ~3));
#pragma unroll
      for (int w = 0; w < 3; ++w) words_[i][w] = __ldcg(words + w);
    }
    // Of the 16 lanes of a group each makes the scale of one row.
    if (threadIdx.x % kAtOnce == i && at_ * 8 / LogFmt10::kGroup < NumGroups(hidden_))
      range_ = __ldcg(reinterpret_cast<const uint32_t*>(row + LogRangesOffset(hidden_)) +
                      at_ * 8 / LogFmt10::kGroup);
  }

  // Once all are asked for.
  __device__ __forceinline__ void Arrive() {
    decoding_ = LogDecoding::Of(range_);
    plain_ = __ballot_sync(kAllLanes, decoding_.plain);
  }

  __device__ __forceinline__ void AddTo(ColumnSum (&sums)[1], int i, float weight) const {
    const int owner = static_cast<int>(threadIdx.x) % kLanes / 16 * 16 + i;
    const LogDecoding decoding = {__shfl_sync(kAllLanes, decoding_.low, owner),
                                  __shfl_sync(kAllLanes, decoding_.step, owner),
                                  (plain_ >> owner & 1u) != 0};
    const unsigned shift = at_ % 2 * 16;
    const uint32_t packed[3] = {__funnelshift_r(words_[i][0], words_[i][1], shift),
                                __funnelshift_r(words_[i][1], words_[i][2], shift),
                                words_[i][2] >> shift};
    float values[8];
    DecodeLogItem(packed, decoding, values);
    sums[0].Add(values, weight);
  }

 private:
  int hidden_;
  int at_;
  uint32_t words_[kAtOnce][3];
  uint32_t range_ = 0;
  LogDecoding decoding_;
  uint32_t plain_;
};

}  // namespace moe_ep::cuda
