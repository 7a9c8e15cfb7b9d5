// Neighbouring elements of a row in one lane's registers: loads, largest magnitudes and hardware
// conversions. A warp reads 32 such vectors one after the other, so that every load is of whole
// sectors.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "moe_ep/cuda/access.cuh"
#include "moe_ep/quant/elements.h"

namespace moe_ep::cuda {

// Largest magnitudes as bits. Of 16-bit elements two lie in a word and are compared apart; a NaN is
// larger than all numbers.
template <typename Element>
struct Peak {
  static constexpr bool kPairs = sizeof(typename Element::Storage) == 2;

  // Of one word of elements.
  static __device__ __forceinline__ uint32_t Of(uint32_t word) {
    return word & (kPairs ? 0x7fff7fffu : 0x7fffffffu);
  }
  static __device__ __forceinline__ uint32_t Larger(uint32_t a, uint32_t b) {
    if constexpr (!kPairs) return a > b ? a : b;
    return __vmaxu2(a, b);
  }
  // NaN as zero: what passes NaN over.
  static __device__ __forceinline__ uint32_t NumbersOf(uint32_t peak) {
    constexpr uint32_t kInfinity = Element::kInfinity;
    if constexpr (!kPairs) return peak > kInfinity ? 0u : peak;
    const uint32_t low = peak & 0xffffu;
    const uint32_t high = peak >> 16;
    return (low > kInfinity ? 0u : low) | (high > kInfinity ? 0u : high << 16);
  }
  static __device__ __forceinline__ typename Element::Storage Bits(uint32_t peak) {
    if constexpr (!kPairs) return peak;
    const uint32_t low = peak & 0xffffu;
    const uint32_t high = peak >> 16;
    return static_cast<typename Element::Storage>(low > high ? low : high);
  }
};

// The two elements of a word, by the hardware; equal to Element::ToFloat but for the bits of NaN.
template <typename Element>
__device__ __forceinline__ void FloatsOfPair(uint32_t word, float& low, float& high) {
  if constexpr (std::is_same_v<Element, BF16Element>) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
  } else {
    asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
        : "=f"(low), "=f"(high)
        : "r"(word));
  }
}

// Rounds to nearest even; NaN is canonical, as FloatToBF16 and FloatToF16 give it.
template <typename Element>
__device__ __forceinline__ uint32_t PairOfFloats(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<Element, BF16Element>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

__device__ __forceinline__ uint32_t MulPairBF16(uint32_t a, uint32_t b) {
  uint32_t product;  // one rounding: the product of two bf16 is exact in f32
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// Four e4m3 codes: rounded to nearest even, saturating, NaN as 0x7f, zeros with their sign; the
// first in the lowest byte.
__device__ __forceinline__ uint32_t E4M3OfFloats(float a, float b, float c, float d) {
  uint32_t codes;
  asm("{\n.reg .b16 l, h;\n"
      "cvt.rn.satfinite.e4m3x2.f32 l, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 h, %4, %3;\n"
      "mov.b32 %0, {l, h};\n}"
      : "=r"(codes)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return codes;
}

// What four e4m3 codes stand for, exactly.
__device__ __forceinline__ void FloatsOfE4M3(uint32_t codes, float (&out)[4]) {
  uint32_t low, high;
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, l;\ncvt.rn.f16x2.e4m3x2 %1, h;\n}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
  FloatsOfPair<F16Element>(low, out[0], out[1]);
  FloatsOfPair<F16Element>(high, out[2], out[3]);
}

// Words kElse where not `wanted`; without a branch, so that the loads of many vectors go out
// together.
template <uint32_t kElse = 0>
__device__ __forceinline__ uint4 LoadOnceIf(bool wanted, const void* from) {
  uint4 v;
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n"
      "mov.u32 %0, %6;\nmov.u32 %1, %6;\nmov.u32 %2, %6;\nmov.u32 %3, %6;\n"
      "@p ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(from), "r"(static_cast<int>(wanted)), "n"(kElse));
  return v;
}

// `kCount` elements: whole 16 bytes.
template <typename Element_, int kCount>
struct LaneVector {
  using Element = Element_;
  using Storage = typename Element::Storage;
  static constexpr int kElements = kCount;
  static constexpr int kWords = kCount * static_cast<int>(sizeof(Storage)) / 4;
  static_assert(kWords % 4 == 0);

  uint32_t words[kWords];

  // Words kElse where not `wanted`.
  template <uint32_t kElse = 0>
  static __device__ __forceinline__ LaneVector LoadIf(bool wanted, const Storage* from) {
    LaneVector v;
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 quad = LoadOnceIf<kElse>(wanted, reinterpret_cast<const uint4*>(from) + i);
      v.words[4 * i] = quad.x;
      v.words[4 * i + 1] = quad.y;
      v.words[4 * i + 2] = quad.z;
      v.words[4 * i + 3] = quad.w;
    }
    return v;
  }
  static __device__ __forceinline__ LaneVector Load(const Storage* from) {
    return LoadIf(true, from);
  }
  __device__ __forceinline__ void Store(Storage* to) const {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      StoreOnce(reinterpret_cast<uint4*>(to) + i,
                {words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]});
    }
  }

  __device__ __forceinline__ uint32_t PeakOf() const {
    uint32_t peak = Peak<Element>::Of(words[0]);
#pragma unroll
    for (int i = 1; i < kWords; ++i) {
      peak = Peak<Element>::Larger(peak, Peak<Element>::Of(words[i]));
    }
    return peak;
  }
  // The same over numbers only.
  __device__ __forceinline__ uint32_t NumbersPeakOf() const {
    uint32_t peak = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t numbers = Peak<Element>::NumbersOf(Peak<Element>::Of(words[i]));
      peak = Peak<Element>::Larger(peak, numbers);
    }
    return peak;
  }

  __device__ __forceinline__ void ToFloats(float (&out)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(Storage) == 2) {
        FloatsOfPair<Element>(words[i], out[2 * i], out[2 * i + 1]);
      } else {
        out[i] = __uint_as_float(words[i]);
      }
    }
  }
  // Rounded to nearest even; NaN is canonical.
  static __device__ __forceinline__ LaneVector OfFloats(const float (&values)[kCount]) {
    LaneVector v;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(Storage) == 2) {
        v.words[i] = PairOfFloats<Element>(values[2 * i], values[2 * i + 1]);
      } else {
        v.words[i] = CanonicalF32Bits(values[i]);
      }
    }
    return v;
  }
};

// Elements of one 16-byte load.
template <typename Element>
inline constexpr int kLoadElements = 16 / static_cast<int>(sizeof(typename Element::Storage));

// Reads the codes of a vector, a byte for each element or less; zeros where not `wanted`.
template <int kWords>
__device__ __forceinline__ void LoadWordsIf(bool wanted, const uint8_t* from,
                                            uint32_t (&words)[kWords]) {
  if constexpr (kWords == 1) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\nmov.u32 %0, 0;\n"
        "@p ld.global.nc.L1::no_allocate.u32 %0, [%1];\n}"
        : "=&r"(words[0])
        : "l"(from), "r"(static_cast<int>(wanted)));
  } else {
    static_assert(kWords == 2);
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.s32 p, %3, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\n"
        "@p ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];\n}"
        : "=&r"(words[0]), "=&r"(words[1])
        : "l"(from), "r"(static_cast<int>(wanted)));
  }
}

// Writes one byte for each element, or half of one.
template <int kWords>
__device__ __forceinline__ void StoreWords(uint8_t* to, const uint32_t (&words)[kWords]) {
  if constexpr (kWords == 1) {
    *reinterpret_cast<uint32_t*>(to) = words[0];
  } else if constexpr (kWords == 2) {
    *reinterpret_cast<uint2*>(to) = {words[0], words[1]};
  } else {
    static_assert(kWords == 4);
    *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
  }
}

}  // namespace moe_ep::cuda
