// LogFMT-10 for vectors in registers: the device's form of logfmt.h, equal bit for bit. Eight
// elements of a lane are 10 bytes of codes.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "moe_ep/quant/lane_vector.cuh"
#include "moe_ep/quant/logfmt.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

inline constexpr uint32_t k2To23 = 0x4b000000u;  // the bits of 2^23, above those of a whole number

// (a & b) | c as one instruction: of two constants the compiler makes two.
__device__ __forceinline__ uint32_t AndOr(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 234;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// Log2 of a normal bf16 number is one of 128 numbers, by its mantissa, plus a whole number: the
// same last addition as in Log2.
struct Log2Table {
  static constexpr int kEntries = 128;
  // Log2's mantissas begin above sqrt(1/2): of bf16, the bits 0x3f36.
  static constexpr uint32_t kPastRoot = 0x36;

  // Of the number with this mantissa from [sqrt(1/2), sqrt(2)), whose whole number is 0.
  static __device__ __forceinline__ float Entry(uint32_t mantissa) {
    const uint32_t below_one = mantissa < kPastRoot ? 0u : 0x80u;
    return Log2(__uint_as_float((0x3f80u + mantissa - below_one) << 16));
  }

  // Of a positive finite number's bits.
  static __device__ __forceinline__ float Of(const float* table, uint32_t magnitude) {
    // Times 2^23 a subnormal number is a normal one, with no more bits.
    const bool subnormal = magnitude < 0x80u;
    const float raised = __uint_as_float(magnitude << 16) * 8388608.0f;
    const uint32_t normal = subnormal ? __float_as_uint(raised) >> 16 : magnitude;
    const auto whole = static_cast<int32_t>((normal + (0x80u - kPastRoot)) >> 7);
    return table[normal & 0x7fu] + static_cast<float>(whole - 127 - (subnormal ? 23 : 0));
  }
};

using moe_ep::detail::LogEncoding;

// The code of an element, given its 16 bits.
__device__ __forceinline__ uint32_t LogCode(const float* table, uint32_t element,
                                            LogEncoding encoding) {
  const uint32_t magnitude = element & 0x7fffu;
  if (magnitude >= BF16Element::kInfinity) return LogFmt10::kSign;
  if (magnitude == 0) return 0;
  const float place =
      (Log2Table::Of(table, magnitude) - encoding.low) * encoding.inverse + encoding.rounding;
  const auto code = static_cast<uint32_t>(__float2int_rz(fminf(fmaxf(place, 0.0f), 511.0f)));
  return code == 0 ? 0u : code | ((element >> 6) & LogFmt10::kSign);
}

// Codes in the halves of a word, of the two elements of a word.
__device__ __forceinline__ uint32_t LogCodes(const float* table, uint32_t word,
                                             LogEncoding encoding) {
  return LogCode(table, word & 0xffffu, encoding) | LogCode(table, word >> 16, encoding) << 16;
}

// LogCodes in a group of normal numbers that are not all the same, and zeros, or of zeros alone. A
// zero is taken for 2^-127: its place lies far below the first code, or is NaN, and becomes 0. No
// place reaches 512.
__device__ __forceinline__ uint32_t PlainLogCodes(const float* table, uint32_t word,
                                                  LogEncoding encoding) {
  // The whole part of a logarithm, plus 127, lies below a half's sign. It becomes a float beside
  // 2^23, and less 127, exactly.
  const uint32_t wholes = word + (0x80u - Log2Table::kPastRoot) * 0x10001u;
  const float lower_whole =
      __fmaf_rn(__uint_as_float(AndOr(wholes, 0x7f80u, k2To23)), 0x1p-7f, -65536.0f - 127.0f);
  const float upper_whole =
      __uint_as_float(__byte_perm(wholes * 2, k2To23, 0x7653)) - (8388608.0f + 127.0f);
  const auto code = [&](uint32_t mantissa, float whole) {
    const float place =
        (table[mantissa & 0x7fu] + whole - encoding.low) * encoding.inverse + encoding.rounding;
    return __float2uint_rz(place);
  };
  const uint32_t lower = code(word, lower_whole);
  const uint32_t upper = code(word >> 16, upper_whole);
  const uint32_t codes = lower + upper * 0x10000u;
  // Bit 9 of what is not 0.
  const uint32_t some = codes + LogFmt10::kLargestCode * 0x10001u;
  return codes | (some & word >> 6 & LogFmt10::kSign * 0x10001u);
}

// Ten bits each of eight codes, in the halves of words; the last word is half used. A product has
// its own pipe.
__device__ __forceinline__ void PackTenBits(const uint32_t (&codes)[4], uint32_t (&packed)[3]) {
  uint32_t twenty[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) twenty[w] = codes[w] - (codes[w] >> 16) * (0x10000u - 0x400u);
  packed[0] = twenty[0] + twenty[1] * (1u << 20);
  packed[1] = (twenty[1] >> 12) + twenty[2] * (1u << 8) + twenty[3] * (1u << 28);
  packed[2] = twenty[3] >> 4;
}
// Twenty bits each of four pairs, and others above them.
__device__ __forceinline__ void UnpackTwentyBits(const uint32_t (&packed)[3], uint32_t (&bits)[4]) {
  bits[0] = packed[0];
  bits[1] = __funnelshift_r(packed[0], packed[1], 20);
  bits[2] = packed[1] >> 8;
  bits[3] = __funnelshift_r(packed[1], packed[2], 28);
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

// 2^x for numbers from -120 to 127. On an H200 it is two units in the last place off PlainExp2 at
// most, over all of them.
__device__ __forceinline__ float NearExp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// What a code stands for, with a function for 2^x.
template <typename Power>
__device__ __forceinline__ float LogValue(uint32_t code, float low, float step,
                                          const Power& power) {
  const uint32_t magnitude = code & LogFmt10::kLargestCode;
  const uint32_t sign = (code & LogFmt10::kSign) << 22;
  // The code less 1 as a float, exactly.
  const float steps = __uint_as_float(k2To23 | magnitude) - 8388609.0f;
  const float value = power(steps * step + low);
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
    return Between(Log2(__uint_as_float(range << 16)), Log2(__uint_as_float(range & 0xffff0000u)));
  }
  // Of their logarithms.
  static __device__ __forceinline__ LogDecoding Between(float least, float high) {
    const auto scale = moe_ep::detail::LogScale::Between(least, high);
    // Also false for what is no number.
    const bool plain =
        scale.step >= 0.0f && scale.low >= -119.0f && 511.0f * scale.step + scale.low <= 126.0f;
    return {scale.low, scale.step, plain};
  }
};

// What the codes of a lane stand for, from their 10 bytes.
__device__ __forceinline__ void DecodeLogItem(const uint32_t (&packed)[3], LogDecoding decoding,
                                              float (&values)[8]) {
  uint32_t bits[4];
  UnpackTwentyBits(packed, bits);
  const auto decode = [&](const auto& power) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      values[2 * w] = LogValue(bits[w], decoding.low, decoding.step, power);
      values[2 * w + 1] = LogValue(bits[w] >> 10, decoding.low, decoding.step, power);
    }
  };
  if (decoding.plain) {
    decode([](float x) { return PlainExp2(x); });
  } else {
    decode([](float x) { return Exp2(x); });
  }
}

// The same, rounded to bf16. In a plain group an exponential of fewer operations gives the same,
// unless it lies next to the middle between two bf16: one element of 6000 takes the long way.
__device__ __forceinline__ LaneVector<BF16Element, 8> DecodeLogItemToBF16(
    const uint32_t (&packed)[3], LogDecoding decoding) {
  using Vector = LaneVector<BF16Element, 8>;
  constexpr uint32_t kHalves = 0x10001u;
  // Units in the last place, the distance that is too near. NearExp2 is said to be off by 2.9 of
  // them, and PlainExp2 is by 1.3.
  constexpr uint32_t kNear = 5;
  float values[8];
  if (!decoding.plain) [[unlikely]] {
    DecodeLogItem(packed, decoding, values);
    return Vector::OfFloats(values);
  }
  uint32_t bits[4];
  UnpackTwentyBits(packed, bits);
  struct Place {
    float exponent;
    float some;  // 0 of the code 0, or 1
  };
  const auto place = [&](int e) {
    // 2^23 + the code, or + 1024 codes; less 1, exactly.
    const float steps = e % 2 == 0
                            ? __uint_as_float(AndOr(bits[e / 2], 0x1ffu, k2To23)) - 8388609.0f
                            : __fmaf_rn(__uint_as_float(AndOr(bits[e / 2], 0x1ffu << 10, k2To23)),
                                        0x1p-10f, -8193.0f);
    return Place{steps * decoding.step + decoding.low, __saturatef(steps + 1.0f)};
  };
  const auto word_of = [&](int w) {
    return PairOfFloats<BF16Element>(values[2 * w], values[2 * w + 1]) |
           (bits[w] * (1u << 6) & 0x8000u) | (bits[w] * (1u << 12) & 0x80000000u);
  };
  Vector result;
  // What rounding drops, less 0x8000 - kNear, and results, less -0: of all low halves the least,
  // and of all high ones.
  uint32_t from_middle = 0xffffffffu;
  uint32_t from_minus_zero = 0xffffffffu;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
#pragma unroll
    for (int e = 2 * w; e < 2 * w + 2; ++e) {
      const Place p = place(e);
      values[e] = NearExp2(p.exponent) * p.some;
    }
    const uint32_t tails =
        __byte_perm(__float_as_uint(values[2 * w]), __float_as_uint(values[2 * w + 1]), 0x5410);
    from_middle = __viaddmin_u16x2(tails, (0x8000u + kNear) * kHalves, from_middle);
    result.words[w] = word_of(w);
    from_minus_zero = __viaddmin_u16x2(result.words[w], 0x8000u * kHalves, from_minus_zero);
  }
  if ((from_middle & 0xffffu) <= 2 * kNear || from_middle >> 16 <= 2 * kNear) [[unlikely]] {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t tail = __float_as_uint(values[e]) + 0x8000u + kNear & 0xffffu;
      if (tail <= 2 * kNear) values[e] = PlainExp2(place(e).exponent);
    }
#pragma unroll
    for (int w = 0; w < 4; ++w) result.words[w] = word_of(w);
  }
  // No number is -0: it stands for NaN.
  if ((from_minus_zero & 0xffffu) == 0 || from_minus_zero >> 16 == 0) [[unlikely]] {
    const auto number_of = [](uint32_t half) { return half == 0x8000u ? 0x7fffu : half; };
#pragma unroll
    for (uint32_t& word : result.words)
      word = number_of(word & 0xffffu) | number_of(word >> 16) << 16;
  }
  return result;
}

__device__ __forceinline__ void StoreTenBytes(uint8_t* to, const uint32_t (&packed)[3]) {
  auto* halves = reinterpret_cast<uint16_t*>(to);
  halves[0] = static_cast<uint16_t>(packed[0]);
  halves[1] = static_cast<uint16_t>(packed[0] >> 16);
  halves[2] = static_cast<uint16_t>(packed[1]);
  halves[3] = static_cast<uint16_t>(packed[1] >> 16);
  halves[4] = static_cast<uint16_t>(packed[2]);
}

// The items of a warp, `WarpItems<16, kItems>`, which it may spoil: 16 lanes hold a group, zeros
// behind the end of a short one. Calls emit(item, its 10 bytes), and gives the range of the groups
// that the lane owns. `table`: Log2Table's entries in shared memory.
template <int kItems, typename Emit>
__device__ __forceinline__ uint32_t EncodeLogItems(LaneVector<BF16Element, 8> (&items)[kItems],
                                                   const float* table, Emit emit) {
  using Warp = WarpItems<16, kItems>;
  static_assert(Warp::kOwned == 1);
  const int lane = LaneOfWarp();
  // The extremes of both halves apart: the magnitudes, and less 1, of which zero is the largest, so
  // that a minimum passes it over.
  uint32_t most[kItems];
  uint32_t least[kItems];
  const auto find = [&](const auto& numbers_of) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      most[i] = 0;
      least[i] = 0xffffffffu;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t numbers = numbers_of(items[i].words[w] & 0x7fff7fffu);
        most[i] = __vmaxu2(most[i], numbers);
        least[i] = __viaddmin_u16x2(numbers, 0xffffffffu, least[i]);
      }
    }
    Warp::Reduce(most, [](uint32_t a, uint32_t b) { return __vmaxu2(a, b); });
    Warp::Reduce(least, [](uint32_t a, uint32_t b) { return __vminu2(a, b); });
  };
  find([](uint32_t magnitudes) { return magnitudes; });
  const bool finite =
      __all_sync(kFullWarp, Peak<BF16Element>::Bits(most[0]) < BF16Element::kInfinity);
  if (!finite) {  // the same without infinities and NaN, which count as zeros
    const auto number = [](uint32_t half) { return half < BF16Element::kInfinity ? half : 0u; };
    find([&](uint32_t magnitudes) {
      return number(magnitudes & 0xffffu) | number(magnitudes >> 16) << 16;
    });
  }
  const uint16_t largest = Peak<BF16Element>::Bits(most[0]);
  const uint16_t smallest =
      static_cast<uint16_t>(largest == 0 ? 0u : min(least[0] & 0xffffu, least[0] >> 16) + 1u);
  LogEncoding own = LogEncoding::Of(moe_ep::detail::LogScale::Between(
      Log2Table::Of(table, smallest), Log2Table::Of(table, largest)));
  // The table gives -150 for zero, which only a group of zeros has.
  if (largest == 0) own.low = -std::numeric_limits<float>::infinity();
  const auto encode = [&](int i, const LaneVector<BF16Element, 8>& item, const auto& codes_of) {
    const int owner = Warp::OwnerOf(lane, i);
    const LogEncoding encoding = {__shfl_sync(kFullWarp, own.low, owner),
                                  __shfl_sync(kFullWarp, own.inverse, owner),
                                  __shfl_sync(kFullWarp, own.rounding, owner)};
    uint32_t codes[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) codes[w] = codes_of(table, item.words[w], encoding);
    uint32_t packed[3];
    PackTenBits(codes, packed);
    emit(i, packed);
  };
  const bool plain = largest == 0 || (smallest >= 0x80u && own.inverse > 0.0f);
  if (finite && __all_sync(kFullWarp, plain)) {
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      encode(i, items[i], [](auto... values) { return PlainLogCodes(values...); });
  } else {
    // Item by item, so that this way takes no more registers than the other.
#pragma unroll 1
    for (int i = 0; i < kItems; ++i) {
      encode(i, items[0], [](auto... values) { return LogCodes(values...); });
#pragma unroll
      for (int next = 1; next < kItems; ++next) items[next - 1] = items[next];
    }
  }
  return smallest | static_cast<uint32_t>(largest) << 16;
}

}  // namespace moe_ep::cuda
