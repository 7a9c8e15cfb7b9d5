// The part of a group that adds up: f32 sums of what comes through a ring, in the order in which it
// comes, rounded once when they are stored.
#pragma once

#include "cuda/row_ring.cuh"
#include "moe_ep/cuda/access.cuh"
#include "moe_ep/deepgemm_permute/cuda/reduce_rows.cuh"

namespace moe_ep::cuda {

// Where sums go, and what is added last.
struct SumOutput {
  uint8_t* rows;
  const uint8_t* bias[2];  // rows like the output's, or null; looked at with kBias only
};

// The first thing that is added. Alone, a row is its own sum, but weighted rows are added to +0.
template <DType dtype, bool kWeighted>
__device__ __forceinline__ void BeginVector(float (&sums)[kVectorElements<dtype>], float weight,
                                            uint4 vector) {
  LoadVector<dtype>(sums, vector);
  if constexpr (kWeighted) {
#pragma unroll
    for (int i = 0; i < kVectorElements<dtype>; ++i) sums[i] = AddProduct(0.0f, weight, sums[i]);
  }
}
template <DType dtype, bool kWeighted>
__device__ __forceinline__ void ContinueVector(float (&sums)[kVectorElements<dtype>], float weight,
                                               uint4 vector) {
  if constexpr (kWeighted) {
    AccumulateVector<dtype>(sums, weight, vector);
  } else {
    AddVector<dtype>(sums, vector);
  }
}

// Barrier of the threads that add up in one group.
__device__ __forceinline__ void SyncSummers(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kSumThreads) : "memory");
}

// Until the note of the end. With kWeighted every row counts as often as its note says; without it
// once. `publish(note)` is called by one thread, when all threads have stored what came before.
template <DType dtype, bool kWeighted, bool kBias, typename Publish>
__device__ void SumRows(Ring ring, int64_t row_bytes, const SumOutput& out, const GroupPlace& me,
                        const Publish& publish) {
  constexpr int kElements = kVectorElements<dtype>;
  constexpr uint32_t kStride = kSumThreads * 16;
  const uint32_t own = static_cast<uint32_t>(me.thread) * 16;
  float sums[kVectors][kElements];
  while (true) {
    WaitBarrier(ring.Full(), ring.parity);
    const Note note = ring.shared.notes[ring.stage];
    const uint32_t loaded = note.Has(Note::kEmpty) ? 0 : note.bytes();
    const uint8_t* const row = ring.Stage() + own;
    uint4 vectors[kVectors] = {};
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (own + v * kStride < loaded)
        vectors[v] = *reinterpret_cast<const uint4*>(row + v * kStride);
    }
    __syncwarp();
    if (me.lane == 0) Arrive(ring.Empty());
    ring.Advance();
    if (note.Has(Note::kEnd | Note::kPublish)) {
      if (note.Has(Note::kEnd)) return;
      SyncSummers(me.group);
      if (me.thread == 0) publish(note);
      continue;
    }
    // What is not there is zeros: no rows at all are +0.
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (note.Has(Note::kFirst)) {
        BeginVector<dtype, kWeighted>(sums[v], note.weight, vectors[v]);
      } else {
        ContinueVector<dtype, kWeighted>(sums[v], note.weight, vectors[v]);
      }
    }
    if (!note.Has(Note::kLast)) continue;
    const int64_t at = note.row * row_bytes + note.offset + own;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (own + v * kStride >= note.bytes()) continue;
      if constexpr (kBias) {
        for (const uint8_t* bias : out.bias) {
          if (bias != nullptr) AddVector<dtype>(sums[v], LoadOnce(bias + at + v * kStride));
        }
      }
      StoreSums<dtype>(out.rows + at + v * kStride, sums[v]);
    }
  }
}

}  // namespace moe_ep::cuda
