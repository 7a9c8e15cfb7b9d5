// One row to fp8 e4m3 with one scale for each group of consecutive elements: what kernels of this
// and of other packages run for each row. README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/lanes.h"
#include "moe_ep/quant/scales.h"

namespace moe_ep {

constexpr int64_t NumGroups(int64_t hidden, int64_t group_size) {
  return hidden / group_size + (hidden % group_size != 0 ? 1 : 0);
}

namespace detail {

// Largest magnitude's bits; NaN is passed over.
template <typename Element>
MOE_EP_LANE typename Element::Storage LargestNumberBits(
    const typename Element::Storage* __restrict x, int64_t count) {
  using Storage = typename Element::Storage;
  Storage largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Storage magnitude = x[i] & Element::kMagnitude;
    const Storage number = magnitude > Element::kInfinity ? Storage{0} : magnitude;
    largest = std::max(largest, number);
  }
  return largest;
}

// What is rounded to e4m3 for one element.
template <Encoding kEncoding>
MOE_EP_LANE float Quotient(float value, GroupScale made) {
  if constexpr (kEncoding == Encoding::kMultiply) return value * made.factor;
  if constexpr (kEncoding == Encoding::kMultiplyBF16) return RoundToBF16(value * made.factor);
  return value / made.scale;
}

// The definition, for any group: NaN is passed over in amax and gives 0x7f.
template <typename Element, Encoding kEncoding>
MOE_EP_RARE float QuantizeAnyGroup(const typename Element::Storage* __restrict x, int64_t count,
                                   ScaleRule rule, uint8_t* __restrict values) {
  const float amax = Element::ToFloat(LargestNumberBits<Element>(x, count));
  GroupScale made = {};
  MakeScales(rule, &amax, 1, &made.scale, &made.factor);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = lanes::FloatToFp8E4M3(Quotient<kEncoding>(Element::ToFloat(x[i]), made));
  }
  return made.scale;
}

// Largest magnitude's bits; a NaN is larger than all numbers.
template <typename Element>
MOE_EP_LANE typename Element::Storage LargestBits(const typename Element::Storage* __restrict x,
                                                  int64_t count) {
  using Storage = typename Element::Storage;
  Storage largest = 0;
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, static_cast<Storage>(x[i] & Element::kMagnitude));
  return largest;
}

// x / scale for narrow x without a division: scale's reciprocal in two parts. `high` is short
// enough that x * high is exact, `low` carries the rest, and the sum is rounded once. Rounded on to
// a narrow format it is what the division gives: tested for every pair of significands of the
// narrow formats. As an f32 number it may differ from the division's where that lies next to a tie.
// Both parts are positive or zero, so a zero stays positive.
struct Reciprocal {
  float high;
  float low;

  template <int kSignificandBits>
  static MOE_EP_LANE Reciprocal Of(float scale) {
    constexpr uint64_t kKeep = ~((uint64_t{1} << (53 - (24 - kSignificandBits))) - 1);
    const double reciprocal = 1.0 / static_cast<double>(scale);
    const double high = std::bit_cast<double>(std::bit_cast<uint64_t>(reciprocal) & kKeep);
    return {static_cast<float>(high), static_cast<float>(reciprocal - high)};
  }
};

// The same quotients where it is known that they are finite.
template <typename Element, Encoding kEncoding>
struct PlainQuotient {
  static constexpr bool kMultiply =
      kEncoding == Encoding::kMultiply || kEncoding == Encoding::kMultiplyBF16;
  static constexpr bool kExactDivision =
      kEncoding == Encoding::kDivideSaturating || Element::kSignificandBits == 24;
  static constexpr bool kSaturate =
      kEncoding == Encoding::kDivideSaturating || kEncoding == Encoding::kMultiplyBF16;
  float first;   // multiplier, divisor, or the reciprocal's high part
  float second;  // the reciprocal's low part

  static MOE_EP_LANE PlainQuotient Of(GroupScale made) {
    if constexpr (kMultiply) {
      return {made.factor, 0.0f};
    } else if constexpr (kExactDivision) {
      return {made.scale, 0.0f};
    } else {
      const Reciprocal reciprocal = Reciprocal::Of<Element::kSignificandBits>(made.scale);
      return {reciprocal.high, reciprocal.low};
    }
  }

  MOE_EP_LANE float operator()(float magnitude) const {
    if constexpr (kEncoding == Encoding::kMultiply) return magnitude * first;
    if constexpr (kEncoding == Encoding::kMultiplyBF16) {
      return FloatOfBits(static_cast<uint32_t>(lanes::NumberToBF16(magnitude * first)) << 16);
    }
    if constexpr (kExactDivision) return magnitude / first;
    return magnitude * first + magnitude * second;
  }
};

// For a group whose largest magnitude is below Element::kPlainLimit: no infinity and no NaN.
template <typename Element, Encoding kEncoding>
MOE_EP_LANE void EncodePlainGroup(const typename Element::Storage* __restrict x, int64_t count,
                                  PlainQuotient<Element, kEncoding> quotient,
                                  uint8_t* __restrict values) {
  using Storage = typename Element::Storage;
  constexpr int kSignShift = static_cast<int>(sizeof(Storage)) * 8 - 8;
  constexpr int32_t kLargest = 0x43e00000;  // 448
  for (int64_t i = 0; i < count; ++i) {
    // The sign goes around the arithmetic, in the narrow type: more elements fit a register there.
    const Storage sign = static_cast<Storage>(x[i] >> kSignShift) & 0x80;
    int32_t magnitude =
        lanes::SignedBitsOf(quotient(Element::FiniteToFloat(x[i] & Element::kMagnitude)));
    if constexpr (quotient.kSaturate) magnitude = std::min(magnitude, kLargest);
    const auto code = static_cast<Storage>(lanes::EncodeMagnitude<4, 3>(magnitude));
    values[i] = static_cast<uint8_t>(code | sign);
  }
}

// Groups [first_group, first_group + groups) of a row, all of `group_size` elements, x and values
// at the first of them. In three passes, so that the divisions that make scales overlap instead of
// each stopping the loop over its group.
template <typename Element, Encoding kEncoding>
MOE_EP_LANE void QuantizeGroups(const typename Element::Storage* __restrict x, int64_t groups,
                                int64_t group_size, ScaleRule rule, uint8_t* __restrict values,
                                int64_t first_group, ScaleRow out) {
  using Plain = PlainQuotient<Element, kEncoding>;
  constexpr int64_t kBlock = 64;
  typename Element::Storage largest[kBlock];
  float amax[kBlock];
  float scales[kBlock];
  float factors[kBlock];
  float first[kBlock];  // the quotients' parts apart, so that the loop that makes them vectorises
  float second[kBlock];
  for (int64_t begin = 0; begin < groups; begin += kBlock) {
    const int64_t count = std::min(kBlock, groups - begin);
    for (int64_t g = 0; g < count; ++g)
      largest[g] = LargestBits<Element>(x + (begin + g) * group_size, group_size);
    for (int64_t g = 0; g < count; ++g) amax[g] = Element::FiniteToFloat(largest[g]);
    MakeScales(rule, amax, count, scales, factors);
    for (int64_t g = 0; g < count; ++g) {
      const Plain quotient = Plain::Of({scales[g], factors[g]});
      first[g] = quotient.first;
      second[g] = quotient.second;
    }
    for (int64_t g = 0; g < count; ++g) {
      const int64_t at = (begin + g) * group_size;
      if (largest[g] < Element::kPlainLimit) {
        EncodePlainGroup<Element, kEncoding>(x + at, group_size, {first[g], second[g]},
                                             values + at);
      } else {
        scales[g] = QuantizeAnyGroup<Element, kEncoding>(x + at, group_size, rule, values + at);
      }
    }
    out.Store(first_group + begin, count, scales);
  }
}

}  // namespace detail

// Writes values[hidden] and the row's NumGroups(hidden, group_size) scales; the last group may be
// short. No alignment is needed. `kEncoding` must be EncodingOf(rule).
template <typename Element, Encoding kEncoding>
MOE_EP_LANE void QuantizeRowPerGroup(const typename Element::Storage* x, int64_t hidden,
                                     int64_t group_size, ScaleRule rule, uint8_t* values,
                                     ScaleRow scales) {
  const int64_t whole = hidden / group_size;
  // A size that is known when compiled spares the loop over a group its remainder.
  if (group_size == 128) {
    detail::QuantizeGroups<Element, kEncoding>(x, whole, 128, rule, values, 0, scales);
  } else if (group_size == 32) {
    detail::QuantizeGroups<Element, kEncoding>(x, whole, 32, rule, values, 0, scales);
  } else {
    detail::QuantizeGroups<Element, kEncoding>(x, whole, group_size, rule, values, 0, scales);
  }
  const int64_t rest = whole * group_size;
  if (rest < hidden) {
    detail::QuantizeGroups<Element, kEncoding>(x + rest, 1, hidden - rest, rule, values + rest,
                                               whole, scales);
  }
  scales.StorePadding(NumGroups(hidden, group_size));
}

}  // namespace moe_ep
