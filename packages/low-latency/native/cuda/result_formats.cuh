// The formats of what a combine sends home. A kernel is built for each: how a warp puts a piece of
// a bf16 row, zeros behind the row's end, and how it asks for rows of a token and adds them.
#pragma once

#include "cuda/logfmt_rows.cuh"
#include "cuda/weighted_sum.cuh"

namespace moe_ep::cuda {

inline constexpr int kAnswered = 2;  // vectors of a lane that are answered at a time
inline constexpr int kAtOnce = 4;    // rows of a token that are asked for together

// Results as bf16: rows are copied as they are, and asked for when they are summed.
struct PlainResults {
  static constexpr bool kLogFmt = false;
  struct Shared {
    __device__ void FillTable() {}
  };
  static __device__ __forceinline__ void Put(int hidden, void* to, const uint4 (&v)[kAnswered],
                                             int at, Shared*) {
#pragma unroll
    for (int i = 0; i < kAnswered; ++i)
      if (at + i * kLanes < hidden / 8) static_cast<uint4*>(to)[at + i * kLanes] = v[i];
  }

  static constexpr int kAnsweredRows = kAtOnce;  // selections that are answered together
  static constexpr int kSummed = 2;              // vectors of a lane that are summed at a time
  class Terms {
   public:
    __device__ Terms(int hidden, int at) : vectors_(hidden / 8), at_(at) {}
    __device__ __forceinline__ void Ask(int i, const uint16_t* result) {
#pragma unroll
      for (int j = 0; j < kSummed; ++j)
        if (at_ + j * kLanes < vectors_)
          v_[i][j] = __ldcg(reinterpret_cast<const uint4*>(result) + at_ + j * kLanes);
    }
    __device__ __forceinline__ void Arrive() {}
    __device__ __forceinline__ void AddTo(ColumnSum (&sums)[kSummed], int i, float weight) const {
#pragma unroll
      for (int j = 0; j < kSummed; ++j) sums[j].Add(v_[i][j], weight);
    }

   private:
    int vectors_;
    int at_;
    uint4 v_[kAtOnce][kSummed];
  };
};

// Results as LogFMT-10.
struct LogResults {
  static constexpr bool kLogFmt = true;
  using Shared = LogShared<kAnswered>;
  static __device__ __forceinline__ void Put(int hidden, void* to, const uint4 (&v)[kAnswered],
                                             int at, Shared* shared) {
    PutLogPiece(v, at, hidden, to, shared);
  }
  static constexpr int kAnsweredRows = 1;  // to encode one takes long, and much code
  static constexpr int kSummed = 1;
  using Terms = LogTerms<kAtOnce>;
};

}  // namespace moe_ep::cuda
