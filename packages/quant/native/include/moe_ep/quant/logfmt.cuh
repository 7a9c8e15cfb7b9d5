// LogFMT-10 for vectors in registers: the device's form of logfmt.h, equal bit for bit. Eight
// elements of a lane are 10 bytes of codes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "moe_ep/quant/lane_vector.cuh"
#include "moe_ep/quant/logfmt.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

// Log2 of bf16 numbers is one of 128 numbers, by their mantissa, plus a whole number: the same last
// addition as in Log2. Subnormal numbers have entries of their own, and 0 in place of the whole
// number.
struct Log2Table {
  static constexpr int kEntries = 256;
  static constexpr uint32_t kRoot = 0x3f3504f3u;  // sqrt(1/2), where Log2's mantissas begin

  // Entry of a mantissa, or 128 + a subnormal number's bits.
  static __device__ __forceinline__ float Entry(uint32_t index) {
    if (index >= 128) return Log2(__uint_as_float((index - 128) << 16));
    // Of the number with this mantissa from [sqrt(1/2), sqrt(2)), whose whole number is 0.
    const uint32_t one = 0x3f800000u + (index << 16);
    return Log2(__uint_as_float(one < kRoot + (1u << 23) ? one : one - (1u << 23)));
  }

  // Of a positive finite number's bits.
  static __device__ __forceinline__ float Of(const float* table, uint32_t magnitude) {
    const bool subnormal = magnitude < 0x80u;
    const float entry = table[(magnitude & 0x7fu) + (subnormal ? 128u : 0u)];
    const int32_t exponent = static_cast<int32_t>((magnitude << 16) - kRoot) >> 23;
    const float whole =
        __int_as_float(0x4b400000 + (subnormal ? 0 : exponent)) - moe_ep::detail::kRoundToWhole;
    return entry + whole;
  }
};

using moe_ep::detail::LogEncoding;

// The code of an element, given its 16 bits. kFinite: it is neither infinite nor NaN.
template <bool kFinite>
__device__ __forceinline__ uint32_t LogCode(const float* table, uint32_t element,
                                            LogEncoding encoding) {
  const uint32_t magnitude = element & 0x7fffu;
  uint32_t number = magnitude;  // a zero's logarithm is masked below
  if constexpr (!kFinite) number = min(magnitude, 0x7f7fu);
  const float place =
      (Log2Table::Of(table, number) - encoding.low) * encoding.inverse + encoding.rounding;
  // fmaxf turns the NaN of a group without a number into 0.
  const auto rounded = static_cast<uint32_t>(__float2int_rz(fminf(fmaxf(place, 0.0f), 511.0f)));
  const uint32_t code = magnitude == 0 ? 0u : rounded;
  const uint32_t sign = code == 0 ? 0u : (element >> 6) & LogFmt10::kSign;
  if (!kFinite && magnitude >= BF16Element::kInfinity) return LogFmt10::kSign;
  return code | sign;
}

// Ten bits each of eight codes; the last word is half used.
__device__ __forceinline__ void PackTenBits(const uint32_t (&c)[8], uint32_t (&packed)[3]) {
  packed[0] = c[0] | c[1] << 10 | c[2] << 20 | c[3] << 30;
  packed[1] = c[3] >> 2 | c[4] << 8 | c[5] << 18 | c[6] << 28;
  packed[2] = c[6] >> 4 | c[7] << 6;
}
__device__ __forceinline__ void UnpackTenBits(const uint32_t (&packed)[3], uint32_t (&c)[8]) {
  c[0] = packed[0] & 0x3ffu;
  c[1] = packed[0] >> 10 & 0x3ffu;
  c[2] = packed[0] >> 20 & 0x3ffu;
  c[3] = (packed[0] >> 30 | packed[1] << 2) & 0x3ffu;
  c[4] = packed[1] >> 8 & 0x3ffu;
  c[5] = packed[1] >> 18 & 0x3ffu;
  c[6] = (packed[1] >> 28 | packed[2] << 4) & 0x3ffu;
  c[7] = packed[2] >> 6 & 0x3ffu;
}

// Exp2 for numbers from -120 to 127: the same operations, but for the clamp and with 2^n as one
// addition to the exponent, which no number of this range leaves.
__device__ __forceinline__ float PlainExp2(float x) {
  const float shifted = x + moe_ep::detail::kRoundToWhole;
  const float rest = x - (shifted - moe_ep::detail::kRoundToWhole);
  float series = 1.5353366e-4f;
  series = series * rest + 1.3398874e-3f;
  series = series * rest + 9.618437e-3f;
  series = series * rest + 5.5503324e-2f;
  series = series * rest + 2.4022648e-1f;
  series = series * rest + 6.931472e-1f;
  const float power = series * rest + 1.0f;
  return __uint_as_float(__float_as_uint(power) + (__float_as_uint(shifted) << 23));
}

// What a code stands for. kPlain: the group's magnitudes lie in PlainExp2's range.
template <bool kPlain>
__device__ __forceinline__ float LogValue(uint32_t code, float low, float step) {
  const uint32_t magnitude = code & LogFmt10::kLargestCode;
  const uint32_t sign = (code & LogFmt10::kSign) << 22;
  // The code less 1 as a float, exactly.
  const float steps = __uint_as_float(0x4b000000u | magnitude) - 8388609.0f;
  const float place = steps * step + low;
  const float value = kPlain ? PlainExp2(place) : Exp2(place);
  const uint32_t none = sign != 0 ? 0x7fffffffu : 0u;
  return __uint_as_float(magnitude != 0 ? __float_as_uint(value) | sign : none);
}

// How the codes of a group become numbers.
struct LogDecoding {
  float low;
  float step;
  bool plain;  // magnitudes lie in PlainExp2's range

  // Of a group's range: its smallest magnitude, and above it the largest.
  static __device__ __forceinline__ LogDecoding Of(uint32_t range) {
    const auto scale = moe_ep::detail::LogScale::Of(static_cast<uint16_t>(range),
                                                    static_cast<uint16_t>(range >> 16));
    // Also false for what is no number.
    const bool plain =
        scale.step >= 0.0f && scale.low >= -119.0f && 511.0f * scale.step + scale.low <= 126.0f;
    return {scale.low, scale.step, plain};
  }
};

// What the codes of a lane stand for, from their 10 bytes.
__device__ __forceinline__ void DecodeLogItem(const uint32_t (&packed)[3], LogDecoding decoding,
                                              float (&values)[8]) {
  uint32_t code[8];
  UnpackTenBits(packed, code);
  if (decoding.plain) {
#pragma unroll
    for (int e = 0; e < 8; ++e) values[e] = LogValue<true>(code[e], decoding.low, decoding.step);
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) values[e] = LogValue<false>(code[e], decoding.low, decoding.step);
  }
}

__device__ __forceinline__ void StoreTenBytes(uint8_t* to, const uint32_t (&packed)[3]) {
  auto* halves = reinterpret_cast<uint16_t*>(to);
  halves[0] = static_cast<uint16_t>(packed[0]);
  halves[1] = static_cast<uint16_t>(packed[0] >> 16);
  halves[2] = static_cast<uint16_t>(packed[1]);
  halves[3] = static_cast<uint16_t>(packed[1] >> 16);
  halves[4] = static_cast<uint16_t>(packed[2]);
}

// The items of a warp, `WarpItems<16, kItems>`: 16 lanes hold a group, zeros behind the end of a
// short one. Calls emit(item, its 10 bytes), and gives the range of the groups that the lane owns.
// `table`: Log2Table's entries in shared memory.
template <int kItems, typename Emit>
__device__ __forceinline__ uint32_t
EncodeLogItems(const LaneVector<BF16Element, 8> (&items)[kItems], const float* table, Emit emit) {
  using Warp = WarpItems<16, kItems>;
  static_assert(Warp::kOwned == 1);
  const int lane = LaneOfWarp();
  const auto larger = [](uint32_t a, uint32_t b) { return Peak<BF16Element>::Larger(a, b); };
  const auto smaller = [](uint32_t a, uint32_t b) { return __vminu2(a, b); };
  // Both halves less 1; zero becomes the largest, so that a minimum passes it over.
  const auto less_one = [](uint32_t pair) {
    return ((pair | 0x80008000u) - 0x00010001u) ^ 0x80008000u;
  };
  uint32_t most[kItems];
  uint32_t least[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) most[i] = items[i].PeakOf();
  Warp::Reduce(most, larger);
  const bool finite =
      __all_sync(kFullWarp, Peak<BF16Element>::Bits(most[0]) < BF16Element::kInfinity);
  if (finite) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      least[i] = less_one(items[i].words[0] & 0x7fff7fffu);
#pragma unroll
      for (int w = 1; w < 4; ++w) {
        least[i] = smaller(least[i], less_one(items[i].words[w] & 0x7fff7fffu));
      }
    }
  } else {  // the same without infinities and NaN, which count as zeros
    const auto number = [](uint32_t half) { return half < BF16Element::kInfinity ? half : 0u; };
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      most[i] = 0;
      least[i] = 0xffffffffu;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t pair = items[i].words[w] & 0x7fff7fffu;
        const uint32_t numbers = number(pair & 0xffffu) | number(pair >> 16) << 16;
        most[i] = larger(most[i], numbers);
        least[i] = smaller(least[i], less_one(numbers));
      }
    }
    Warp::Reduce(most, larger);
  }
  Warp::Reduce(least, smaller);
  const uint16_t largest = Peak<BF16Element>::Bits(most[0]);
  const uint16_t smallest =
      static_cast<uint16_t>(largest == 0 ? 0u : min(least[0] & 0xffffu, least[0] >> 16) + 1u);
  const LogEncoding own = LogEncoding::Of(moe_ep::detail::LogScale::Of(smallest, largest));
  const auto encode = [&](auto known) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int owner = Warp::OwnerOf(lane, i);
      const LogEncoding encoding = {__shfl_sync(kFullWarp, own.low, owner),
                                    __shfl_sync(kFullWarp, own.inverse, owner),
                                    __shfl_sync(kFullWarp, own.rounding, owner)};
      uint32_t code[8];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t pair = items[i].words[w];
        constexpr bool kFinite = decltype(known)::value;
        code[2 * w] = LogCode<kFinite>(table, pair & 0xffffu, encoding);
        code[2 * w + 1] = LogCode<kFinite>(table, pair >> 16, encoding);
      }
      uint32_t packed[3];
      PackTenBits(code, packed);
      emit(i, packed);
    }
  };
  if (finite) {
    encode(std::true_type());
  } else {
    encode(std::false_type());
  }
  return smallest | static_cast<uint32_t>(largest) << 16;
}

}  // namespace moe_ep::cuda
