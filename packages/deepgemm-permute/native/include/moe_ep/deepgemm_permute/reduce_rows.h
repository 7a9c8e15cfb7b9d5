// Weighted sums of rows in f32: acc = acc + (weight * value), two roundings, in the order of the
// calls.
//
// The loops are plain so that the compiler vectorises them for the caller's instruction set: call
// them from functions that are marked MOE_EP_CLONES.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"

namespace moe_ep {

// How one element of a row is stored, read and written. Branch-free throughout.
template <DType dtype>
struct RowElement;

template <>
struct RowElement<DType::kF32> {
  using Storage = uint32_t;
  static float Load(Storage bits) { return FloatOfBits(bits); }
  static Storage Store(float value) { return CanonicalF32Bits(value); }
};

template <>
struct RowElement<DType::kBF16> {
  using Storage = uint16_t;
  static float Load(Storage bits) { return BF16ToFloat(bits); }
  static Storage Store(float value) { return FloatToBF16(value); }
};

template <>
struct RowElement<DType::kF16> {
  using Storage = uint16_t;

  // Multiplying by 2^112 moves the exponent, and normalises the small ones. A NaN keeps its bits:
  // what is computed from it becomes canonical when stored.
  static float Load(Storage bits) {
    const uint32_t magnitude = bits & 0x7fffu;
    const uint32_t scaled = BitsOfFloat(FloatOfBits(magnitude << 13) * 0x1p112f);
    const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
    return FloatOfBits(scaled | special | (static_cast<uint32_t>(bits & 0x8000u) << 16));
  }

  // Equal to FloatToF16 on all inputs, with every case computed and then chosen. GCC needs
  // -fno-trapping-math to vectorise that.
  static Storage Store(float value) {
    const uint32_t bits = BitsOfFloat(value);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // The unit in the last place of 0.5 is the step of f16's subnormal numbers.
    const uint32_t subnormal = BitsOfFloat(FloatOfBits(magnitude) + 0.5f) - BitsOfFloat(0.5f);
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t result = sign | (magnitude >= 0x47800000u ? 0x7c00u : finite);
    return static_cast<Storage>(magnitude > 0x7f800000u ? 0x7fffu : result);
  }
};

// acc[i] += weights[r] * rows[r][i] for r = 0 .. kRows - 1, in that order.
template <DType dtype, int kRows>
inline __attribute__((always_inline)) void AccumulateRows(
    float* __restrict acc, const typename RowElement<dtype>::Storage* const* rows,
    const float* weights, int64_t count) {
  using Storage = typename RowElement<dtype>::Storage;
  const Storage* row[kRows];
  float weight[kRows];
  for (int r = 0; r < kRows; ++r) {
    row[r] = rows[r];
    weight[r] = weights[r];
  }
  for (int64_t i = 0; i < count; ++i) {
    float sum = acc[i];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum = sum + weight[r] * RowElement<dtype>::Load(row[r][i]);
    acc[i] = sum;
  }
}

// out[i] = acc[i], rounded once.
template <DType dtype>
inline __attribute__((always_inline)) void StoreRow(
    const float* __restrict acc, typename RowElement<dtype>::Storage* __restrict out,
    int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = RowElement<dtype>::Store(acc[i]);
}

}  // namespace moe_ep
