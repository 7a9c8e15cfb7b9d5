// The part of a group that adds up: f32 sums of what comes through a ring, in the order in which it
// comes, rounded once when they are stored.
#pragma once

#include "moe_ep/cuda/access.cuh"
#include "moe_ep/deepgemm_permute/cuda/reduce_rows.cuh"
#include "moe_ep/deepgemm_permute/cuda/row_ring.cuh"

namespace moe_ep::cuda {

// Where sums go, and what is added last.
struct SumOutput {
  uint8_t* rows;  // null: nowhere
  int64_t row_bytes;
  const uint8_t* bias[2] = {};  // rows like the output's, or null; looked at with kBias only
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

// Barrier of the threads that add up in one group. Lanes that have parted come back together first,
// so that a warp arrives as one.
__device__ __forceinline__ void SyncSummers(int group) {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kSumThreads) : "memory");
}

// Until the note of the end. With kWeighted every row counts as often as its note says; without it
// once. `publish(note)` is called by one thread, when all threads have stored what came before.
template <DType in, DType out, bool kWeighted, bool kBias, typename Publish>
__device__ void SumRows(Ring ring, const SumOutput& to, const GroupPlace& me,
                        const Publish& publish) {
  static_assert(!kBias || in == out);
  constexpr uint32_t kStride = kSumThreads * 16;
  const uint32_t own = static_cast<uint32_t>(me.thread) * 16;
  float sums[kVectors][kVectorElements<in>];
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
    Arrive(ring.Empty());
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
        BeginVector<in, kWeighted>(sums[v], note.weight, vectors[v]);
      } else {
        ContinueVector<in, kWeighted>(sums[v], note.weight, vectors[v]);
      }
    }
    if (!note.Has(Note::kLast) || to.rows == nullptr) continue;
    const int64_t at =
        note.row * to.row_bytes + int64_t{(note.offset + own) / 16} * kSumBytes<in, out>;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (own + v * kStride >= note.bytes()) continue;
      const int64_t place = at + v * kSumThreads * kSumBytes<in, out>;
      if constexpr (kBias) {
        for (const uint8_t* bias : to.bias) {
          if (bias != nullptr) AddVector<in>(sums[v], LoadOnce(bias + place));
        }
      }
      StoreSums<out>(to.rows + place, sums[v]);
    }
  }
}

}  // namespace moe_ep::cuda
