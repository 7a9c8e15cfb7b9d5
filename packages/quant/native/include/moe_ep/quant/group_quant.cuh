// Groups of elements to fp8 e4m3, by a warp that holds them in registers: the device's form of
// group_quant.h, equal bit for bit.
//
//   LaneVector<BF16Element, 8> items[16];  // 256 elements each: 2 groups of 128
//   const float scale = QuantizeGroups<Encoding::kDivide, 128>(items, rule, [&](int i, const auto&
//   codes) { StoreWords(values + place of item i for this lane, codes); });
//
// The scale of item WarpItems::FirstOwned(lane), group WarpItems::GroupOf(lane) comes back in each
// lane. All lanes of the warp take part; what a row lacks is given as zeros.
#pragma once

#include <cstdint>
#include <type_traits>

#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/lane_vector.cuh"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

__device__ __forceinline__ GroupScale ScaleFor(ScaleRule rule, float amax) {
  GroupScale made;
  MakeScales(rule, &amax, 1, &made.scale, &made.factor);
  return made;
}

// The quotients of PlainQuotient, or such as round to the same codes: without a division for each
// element, and for zeros as quick as for others.
//
// Also f32, and what any bound may be the scale of, is multiplied by a reciprocal in two parts, of
// which the second is rounded up. The fused sum of both products is off by 2^-45 of it at most. A
// quotient of two f32 lies that near to where codes change only if the significand of the scale is
// within 11 of a multiple of 2^20. These have all been tried, and a test has them; with the second
// part rounded to nearest one of them fails, also of narrow x.
template <typename Element, Encoding kEncoding>
struct GroupQuotient {
  using Plain = moe_ep::detail::PlainQuotient<Element, kEncoding>;
  static constexpr bool kMultiply = Plain::kMultiply;
  float first;   // multiplier, or the reciprocal's high part
  float second;  // the reciprocal's low part

  static __device__ __forceinline__ GroupQuotient Of(GroupScale made) {
    if constexpr (kMultiply) {
      return {made.factor, 0.0f};
    } else if constexpr (!Plain::kExactDivision) {
      const Plain plain = Plain::Of(made);
      return {plain.first, plain.second};
    } else {
      const double reciprocal = 1.0 / static_cast<double>(made.scale);
      const float high = __double2float_rz(reciprocal);
      return {high, __double2float_ru(reciprocal - static_cast<double>(high))};
    }
  }
  __device__ __forceinline__ float operator()(float x) const {
    if constexpr (kMultiply) return Plain{first, second}(x);
    return __fmaf_rn(x, first, x * second);
  }
};

// The codes of a vector of a group that has neither infinities nor NaN.
template <Encoding kEncoding, typename Vector>
__device__ __forceinline__ void EncodePlain(
    const Vector& v, GroupQuotient<typename Vector::Element, kEncoding> quotient,
    uint32_t (&codes)[Vector::kElements / 4]) {
  float x[Vector::kElements];
  if constexpr (kEncoding == Encoding::kMultiplyBF16) {
    static_assert(std::is_same_v<typename Vector::Element, BF16Element>);
    // The multiplier is a bf16 number, too.
    const uint32_t factors = PairOfFloats<BF16Element>(quotient.first, quotient.first);
    Vector products;
#pragma unroll
    for (int i = 0; i < Vector::kWords; ++i) products.words[i] = MulPairBF16(v.words[i], factors);
    products.ToFloats(x);
  } else {
    v.ToFloats(x);
#pragma unroll
    for (int i = 0; i < Vector::kElements; ++i) x[i] = quotient(x[i]);
  }
#pragma unroll
  for (int i = 0; i < Vector::kElements / 4; ++i) {
    codes[i] = E4M3OfFloats(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
  }
}

// The codes of a vector of any group: the definition.
template <Encoding kEncoding, typename Vector>
__device__ __forceinline__ void EncodeAny(const Vector& v, GroupScale made,
                                          uint32_t (&codes)[Vector::kElements / 4]) {
  float x[Vector::kElements];
  v.ToFloats(x);
#pragma unroll
  for (int i = 0; i < Vector::kElements; ++i) {
    x[i] = moe_ep::detail::Quotient<kEncoding>(x[i], made);
  }
#pragma unroll
  for (int i = 0; i < Vector::kElements / 4; ++i) {
    codes[i] = E4M3OfFloats(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
  }
}

// Calls emit(item, codes) for each item. kGroup elements share a scale.
template <Encoding kEncoding, int kGroup, typename Vector, int kItems, typename Emit>
__device__ __forceinline__ float QuantizeGroups(const Vector (&items)[kItems], ScaleRule rule,
                                                Emit emit) {
  using Element = typename Vector::Element;
  using Warp = WarpItems<kGroup / Vector::kElements, kItems>;
  using Quotient = GroupQuotient<Element, kEncoding>;
  static_assert(Warp::kOwned == 1);
  const int lane = LaneOfWarp();
  const auto larger = [](uint32_t a, uint32_t b) { return Peak<Element>::Larger(a, b); };
  uint32_t peaks[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) peaks[i] = items[i].PeakOf();
  Warp::Reduce(peaks, larger);
  const auto largest = Peak<Element>::Bits(peaks[0]);
  if (__all_sync(kFullWarp, largest < Element::kPlainLimit)) {
    const GroupScale made = ScaleFor(rule, Element::ToFloat(largest));
    const Quotient own = Quotient::Of(made);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int owner = Warp::OwnerOf(lane, i);
      Quotient quotient = own;
      quotient.first = __shfl_sync(kFullWarp, own.first, owner);
      if constexpr (!Quotient::kMultiply) {
        quotient.second = __shfl_sync(kFullWarp, own.second, owner);
      }
      uint32_t codes[Vector::kElements / 4];
      EncodePlain<kEncoding>(items[i], quotient, codes);
      emit(i, codes);
    }
    return made.scale;
  }
  // Somewhere is a NaN, an infinity or a very large number: rare, so small code before speed.
#pragma unroll
  for (int i = 0; i < kItems; ++i) peaks[i] = items[i].NumbersPeakOf();
  Warp::Reduce(peaks, larger);
  const GroupScale made = ScaleFor(rule, Element::ToFloat(Peak<Element>::Bits(peaks[0])));
  Vector copy[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) copy[i] = items[i];
#pragma unroll 1
  for (int i = 0; i < kItems; ++i) {
    const int owner = Warp::OwnerOf(lane, i);
    GroupScale shared;
    shared.scale = __shfl_sync(kFullWarp, made.scale, owner);
    shared.factor = __shfl_sync(kFullWarp, made.factor, owner);
    uint32_t codes[Vector::kElements / 4];
    EncodeAny<kEncoding>(copy[i], shared, codes);
    emit(i, codes);
  }
  return made.scale;
}

// Writes the scale of one group, in any layout.
struct ScaleWriter {
  uint8_t* data;
  int64_t row_stride;     // bytes
  int64_t column_stride;  // bytes
  int64_t groups;
  bool packed;

  // With packed scales it may be called for groups up to the end of a word, and zeroes those past
  // the last.
  __device__ __forceinline__ void Store(int64_t row, int64_t group, float scale) const {
    uint8_t* at = data + row * row_stride;
    if (packed) {
      const int64_t word = group >> 2;
      if (word > (groups - 1) >> 2) return;
      const uint32_t exponent = group < groups ? __float_as_uint(scale) >> 23 : 0u;
      at[word * column_stride + (group & 3)] = static_cast<uint8_t>(exponent);
    } else if (group < groups) {
      *reinterpret_cast<float*>(at + group * column_stride) = scale;
    }
  }
};

}  // namespace moe_ep::cuda
