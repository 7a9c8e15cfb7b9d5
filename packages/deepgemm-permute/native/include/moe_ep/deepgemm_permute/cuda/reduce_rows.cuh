// Weighted sums of rows in f32 on the device: acc = acc + (weight * value), two roundings, in the
// order of the calls; one rounding when a sum is stored. The same bits as reduce_rows.h gives.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "moe_ep/cuda/access.cuh"
#include "moe_ep/dtype.h"

namespace moe_ep::cuda {

// One element of a row.
template <DType dtype>
struct ReducedElement;

template <>
struct ReducedElement<DType::kF32> {
  using Storage = uint32_t;
  static __device__ __forceinline__ float Load(Storage bits) { return FloatOfBits(bits); }
  static __device__ __forceinline__ Storage Store(float value) { return CanonicalF32Bits(value); }
};

template <>
struct ReducedElement<DType::kBF16> {
  using Storage = uint16_t;
  static __device__ __forceinline__ float Load(Storage bits) { return BF16ToFloat(bits); }
  static __device__ __forceinline__ Storage Store(float value) { return FloatToBF16(value); }
};

template <>
struct ReducedElement<DType::kF16> {
  using Storage = uint16_t;
  static __device__ __forceinline__ float Load(Storage bits) { return F16ToFloat(bits); }
  static __device__ __forceinline__ Storage Store(float value) { return FloatToF16(value); }
};

// Elements of a row that are read as 16 bytes.
template <DType dtype>
inline constexpr int kVectorElements = 16 / sizeof(typename ReducedElement<dtype>::Storage);

// Of the sums that come from a vector.
template <DType in, DType out>
inline constexpr int kSumBytes =
    kVectorElements<in> * static_cast<int>(sizeof(typename ReducedElement<out>::Storage));

__device__ __forceinline__ float AddProduct(float sum, float weight, float value) {
  return __fadd_rn(sum, __fmul_rn(weight, value));
}

// Elements of a vector.
template <DType dtype>
__device__ __forceinline__ void LoadVector(float (&values)[kVectorElements<dtype>], uint4 vector) {
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (dtype == DType::kF32) {
      values[i] = FloatOfBits(words[i]);
    } else if constexpr (dtype == DType::kBF16) {
      values[2 * i] = FloatOfBits(words[i] << 16);
      values[2 * i + 1] = FloatOfBits(words[i] & 0xffff0000u);
    } else {
      // The hardware's conversion is exact; what is computed from a NaN becomes canonical when
      // stored.
      __half2_raw halves;
      halves.x = static_cast<uint16_t>(words[i]);
      halves.y = static_cast<uint16_t>(words[i] >> 16);
      const float2 pair = __half22float2(__half2(halves));
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

// sums[i] += weight * element i of a vector.
template <DType dtype>
__device__ __forceinline__ void AccumulateVector(float (&sums)[kVectorElements<dtype>],
                                                 float weight, uint4 vector) {
  float values[kVectorElements<dtype>];
  LoadVector<dtype>(values, vector);
#pragma unroll
  for (int i = 0; i < kVectorElements<dtype>; ++i) sums[i] = AddProduct(sums[i], weight, values[i]);
}

// sums[i] += element i of a vector: what a weight of one gives.
template <DType dtype>
__device__ __forceinline__ void AddVector(float (&sums)[kVectorElements<dtype>], uint4 vector) {
  float values[kVectorElements<dtype>];
  LoadVector<dtype>(values, vector);
#pragma unroll
  for (int i = 0; i < kVectorElements<dtype>; ++i) sums[i] = __fadd_rn(sums[i], values[i]);
}

// Two elements in a word. The hardware rounds to nearest even and makes every NaN 0x7fff, as
// FloatToBF16 and FloatToF16 do.
template <DType dtype>
__device__ __forceinline__ uint32_t StorePair(float low, float high) {
  uint32_t word;
  if constexpr (dtype == DType::kBF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

// Stores sums as elements of `dtype`, at an address that is a multiple of 16 bytes, or of all the
// sums' bytes where these are fewer.
template <DType dtype, int kCount>
__device__ __forceinline__ void StoreSums(void* to, const float (&sums)[kCount]) {
  constexpr int kWords =
      kCount * static_cast<int>(sizeof(typename ReducedElement<dtype>::Storage)) / 4;
  uint32_t words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    if constexpr (dtype == DType::kF32) {
      words[i] = CanonicalF32Bits(sums[i]);
    } else {
      words[i] = StorePair<dtype>(sums[2 * i], sums[2 * i + 1]);
    }
  }
  if constexpr (kWords == 2) {
    *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4)
      StoreOnce(static_cast<uint4*>(to) + i / 4,
                make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]));
  }
}

}  // namespace moe_ep::cuda
