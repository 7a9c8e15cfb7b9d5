// One row to fp8 e4m3 with one f32 scale for each group of consecutive elements, and back: what
// kernels of this and of other packages run for each row. README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/lanes.h"

namespace moe_ep {

// How a scale comes from a group's amax, and how it is applied.
enum class GroupNumerics {
  kVllm,    // amax at least 1e-10; scale = amax / 448; code of x / scale
  kDeepEp,  // amax at least 1e-4; scale = amax * (1/448); code of x * (448 / amax)
};

constexpr int64_t NumGroups(int64_t hidden, int64_t group_size) {
  return hidden / group_size + (hidden % group_size != 0 ? 1 : 0);
}

namespace detail {

template <GroupNumerics kNumerics>
MOE_EP_LANE float FloorAmax(float amax) {
  return std::max(kNumerics == GroupNumerics::kVllm ? 1e-10f : 1e-4f, amax);
}

template <GroupNumerics kNumerics>
MOE_EP_LANE float ScaleOf(float amax) {
  return kNumerics == GroupNumerics::kVllm ? amax / 448.0f : amax * (1.0f / 448.0f);
}

// The definition, for any group: NaN is passed over in amax and gives 0x7f.
template <typename Element, GroupNumerics kNumerics>
MOE_EP_LANE float QuantizeAnyGroup(const typename Element::Storage* __restrict x, int64_t count,
                                   uint8_t* __restrict values) {
  using Storage = typename Element::Storage;
  Storage largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Storage magnitude = x[i] & Element::kMagnitude;
    const Storage number = magnitude > Element::kInfinity ? Storage{0} : magnitude;
    largest = std::max(largest, number);
  }
  const float amax = FloorAmax<kNumerics>(Element::ToFloat(largest));
  const float scale = ScaleOf<kNumerics>(amax);
  const float factor = 448.0f / amax;
  for (int64_t i = 0; i < count; ++i) {
    const float value = Element::ToFloat(x[i]);
    values[i] =
        lanes::FloatToFp8E4M3(kNumerics == GroupNumerics::kVllm ? value / scale : value * factor);
  }
  return scale;
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
// enough that x * high is exact, `low` carries the rest, and the one rounding of the sum gives the
// quotient as the division rounds it. That holds for every pair of significands of the narrow
// formats and is tested for all of them. Both parts are positive or zero, so a zero stays positive.
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

// How the elements of one group turn into quotients.
template <typename Element, GroupNumerics kNumerics>
struct Quotient {
  static constexpr bool kMultiply = kNumerics == GroupNumerics::kDeepEp;
  static constexpr bool kDivide = !kMultiply && Element::kSignificandBits == 24;
  float first;   // multiplier, divisor, or the reciprocal's high part
  float second;  // the reciprocal's low part

  static MOE_EP_LANE Quotient Of(float amax, float scale) {
    if constexpr (kMultiply) {
      return {448.0f / amax, 0.0f};
    } else if constexpr (kDivide) {
      return {scale, 0.0f};
    } else {
      const Reciprocal reciprocal = Reciprocal::Of<Element::kSignificandBits>(scale);
      return {reciprocal.high, reciprocal.low};
    }
  }

  MOE_EP_LANE float operator()(float value) const {
    if constexpr (kMultiply) return value * first;
    if constexpr (kDivide) return value / first;
    return value * first + value * second;
  }
};

// For a group whose largest magnitude is below Element::kPlainLimit: no infinity, no NaN, and
// quotients stay below 464.
template <typename Element, GroupNumerics kNumerics>
MOE_EP_LANE void EncodePlainGroup(const typename Element::Storage* __restrict x, int64_t count,
                                  Quotient<Element, kNumerics> quotient,
                                  uint8_t* __restrict values) {
  using Storage = typename Element::Storage;
  constexpr int kSignShift = static_cast<int>(sizeof(Storage)) * 8 - 8;
  for (int64_t i = 0; i < count; ++i) {
    // The sign goes around the arithmetic, in the narrow type: more elements fit a register there.
    const Storage sign = static_cast<Storage>(x[i] >> kSignShift) & 0x80;
    const float magnitude = quotient(Element::FiniteToFloat(x[i] & Element::kMagnitude));
    const auto code =
        static_cast<Storage>(lanes::EncodeMagnitude<4, 3>(lanes::SignedBitsOf(magnitude)));
    values[i] = static_cast<uint8_t>(code | sign);
  }
}

// Groups [0, groups) of a row, all of `group_size` elements. In three passes, so that the divisions
// that make scales overlap instead of each stopping the loop over its group.
template <typename Element, GroupNumerics kNumerics>
MOE_EP_LANE void QuantizeGroups(const typename Element::Storage* __restrict x, int64_t groups,
                                int64_t group_size, uint8_t* __restrict values,
                                float* __restrict scales) {
  constexpr int64_t kBlock = 64;
  typename Element::Storage largest[kBlock];
  float first[kBlock];  // the quotients' parts apart, so that the loop that makes them vectorises
  float second[kBlock];
  for (int64_t begin = 0; begin < groups; begin += kBlock) {
    const int64_t count = std::min(kBlock, groups - begin);
    for (int64_t g = 0; g < count; ++g)
      largest[g] = LargestBits<Element>(x + (begin + g) * group_size, group_size);
    for (int64_t g = 0; g < count; ++g) {
      const float amax = FloorAmax<kNumerics>(Element::FiniteToFloat(largest[g]));
      const float scale = ScaleOf<kNumerics>(amax);
      scales[begin + g] = scale;
      const auto quotient = Quotient<Element, kNumerics>::Of(amax, scale);
      first[g] = quotient.first;
      second[g] = quotient.second;
    }
    for (int64_t g = 0; g < count; ++g) {
      const int64_t at = (begin + g) * group_size;
      if (largest[g] < Element::kPlainLimit) {
        EncodePlainGroup<Element, kNumerics>(x + at, group_size, {first[g], second[g]},
                                             values + at);
      } else {
        scales[begin + g] = QuantizeAnyGroup<Element, kNumerics>(x + at, group_size, values + at);
      }
    }
  }
}

}  // namespace detail

// Writes values[hidden] and scales[NumGroups(hidden, group_size)]; the last group may be short. No
// alignment is needed.
template <typename Element, GroupNumerics kNumerics>
MOE_EP_LANE void QuantizeRowPerGroup(const typename Element::Storage* x, int64_t hidden,
                                     int64_t group_size, uint8_t* values, float* scales) {
  const int64_t whole = hidden / group_size;
  // A size that is known when compiled spares the loop over a group its remainder.
  if (group_size == 128) {
    detail::QuantizeGroups<Element, kNumerics>(x, whole, 128, values, scales);
  } else {
    detail::QuantizeGroups<Element, kNumerics>(x, whole, group_size, values, scales);
  }
  const int64_t rest = whole * group_size;
  if (rest < hidden) {
    detail::QuantizeGroups<Element, kNumerics>(x + rest, 1, hidden - rest, values + rest,
                                               scales + whole);
  }
}

namespace detail {

template <typename Element>
MOE_EP_LANE void DequantizeGroup(const uint8_t* __restrict values, float scale, int64_t count,
                                 typename Element::Storage* __restrict out) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, static_cast<uint8_t>(values[i] & 0x7f));
  const bool finite = (BitsOfFloat(scale) & 0x7fffffffu) < 0x7f800000u;
  if (finite && largest < 0x7f) {  // no product is NaN
    for (int64_t i = 0; i < count; ++i) {
      out[i] = Element::FromNumber(lanes::NumericFp8E4M3ToFloat(values[i]) * scale);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = Element::FromFloat(lanes::Fp8E4M3ToFloat(values[i]) * scale);
    }
  }
}

}  // namespace detail

// out[i] = values[i] * scales[i / group_size]: one f32 product, rounded to the element type; NaN is
// canonical.
template <typename Element>
MOE_EP_LANE void DequantizeRowPerGroup(const uint8_t* values, const float* scales, int64_t hidden,
                                       int64_t group_size, typename Element::Storage* out) {
  const int64_t whole = hidden / group_size;
  if (group_size == 128) {
    for (int64_t g = 0; g < whole; ++g) {
      detail::DequantizeGroup<Element>(values + g * 128, scales[g], 128, out + g * 128);
    }
  } else {
    for (int64_t g = 0; g < whole; ++g) {
      const int64_t at = g * group_size;
      detail::DequantizeGroup<Element>(values + at, scales[g], group_size, out + at);
    }
  }
  const int64_t rest = whole * group_size;
  if (rest < hidden) {
    detail::DequantizeGroup<Element>(values + rest, scales[whole], hidden - rest, out + rest);
  }
}

}  // namespace moe_ep
