// Codes of MXFP8, MXFP4 and NVFP4 for vectors in registers: the device's form of small_groups.h,
// equal bit for bit.
#pragma once

#include <cstdint>

#include "moe_ep/quant/lane_vector.cuh"
#include "moe_ep/quant/small_groups.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

// Bytes of a vector's codes, as words; of four fp4 codes half a word is used.
template <typename Codes, int kElements>
inline constexpr int kCodeWords = (kElements / Codes::kPerByte + 3) / 4;

// e2m1 codes of eight (or four) floats, the first in the lowest bits. Below 2 a code counts halves,
// up to 4 it is 2 and ones, above it is 4 and twos: everywhere the smallest of the three, and of
// 7. The sum with 2^23 rounds to nearest even and has the integer in its low bits, of which the
// sign makes bit 3. NaN, which has no sign behind an operation, becomes 7.
template <int kElements>
__device__ __forceinline__ uint32_t E2M1OfFloats(const float (&x)[kElements]) {
  constexpr float kBase = 0x1p23f + 4;  // what the sign takes away or doubles
  uint32_t codes = 0;
  uint32_t left_over = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const float magnitude = fabsf(x[i]);
    const float small = fminf(__fmaf_rn(magnitude, 2.0f, kBase), magnitude + (kBase + 2));
    const float large = fminf(__fmaf_rn(magnitude, 0.5f, kBase + 4), kBase + 7);
    const float code = __fmaf_rn(copysignf(1.0f, x[i]), -4.0f, fminf(small, large));
    codes += __float_as_uint(code) << (4 * i);
    left_over += 0x4b000000u << (4 * i);
  }
  return codes - left_over;
}

// Nvfp4Scales with the hardware's conversions.
struct HardwareNvfp4Scales {
  static constexpr int kGroup = Nvfp4Scales::kGroup;
  Nvfp4Scales rule;

  static __device__ __forceinline__ HardwareNvfp4Scales Of(float global) {
    return {Nvfp4Scales::Of(global)};
  }

  __device__ __forceinline__ SmallGroupScale operator()(float amax) const {
    if (__float_as_uint(amax) == moe_ep::lanes::kInfinityF32) return {0x7f, 0.0f};
    const uint32_t code = E4M3OfFloats(rule.Unrounded(amax), 0.0f, 0.0f, 0.0f);
    float decoded[4];
    FloatsOfE4M3(code, decoded);
    return rule.Rounded(static_cast<uint8_t>(code), decoded[0]);
  }
};

// Codes of value * factor.
template <typename Codes, typename Vector>
__device__ __forceinline__ void EncodeSmall(
    const Vector& v, float factor, uint32_t (&codes)[kCodeWords<Codes, Vector::kElements>]) {
  constexpr int kElements = Vector::kElements;
  float x[kElements];
  v.ToFloats(x);
#pragma unroll
  for (int i = 0; i < kElements; ++i) x[i] *= factor;
  if constexpr (Codes::kPerByte == 1) {
#pragma unroll
    for (int i = 0; i < kElements / 4; ++i) {
      codes[i] = E4M3OfFloats(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    }
  } else {
    codes[0] = E2M1OfFloats(x);
  }
}

// Codes of the items of a warp, which has `WarpItems<kGroup / kElements, kItems>` of them: calls
// emit(item, codes) for each, and gives the scales of the groups that the lane owns.
template <typename Codes, typename Vector, int kItems, typename Scales, int kOwned, typename Emit>
__device__ __forceinline__ void QuantizeSmallItems(const Vector (&items)[kItems], Scales scales,
                                                   SmallGroupScale (&made)[kOwned], Emit emit) {
  using Element = typename Vector::Element;
  constexpr int kElements = Vector::kElements;
  using Warp = WarpItems<Scales::kGroup / kElements, kItems>;
  static_assert(kOwned == Warp::kOwned);
  const int lane = LaneOfWarp();
  const auto larger = [](uint32_t a, uint32_t b) { return Peak<Element>::Larger(a, b); };
  uint32_t peaks[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) peaks[i] = items[i].PeakOf();
  Warp::Reduce(peaks, larger);
  if constexpr (Codes::kNaN) {
    bool nan = false;
#pragma unroll
    for (int s = 0; s < kOwned; ++s) {
      nan = nan || Peak<Element>::Bits(peaks[s]) > Element::kInfinity;
    }
    if (__any_sync(kFullWarp, nan)) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) peaks[i] = items[i].NumbersPeakOf();
      Warp::Reduce(peaks, larger);
    }
  }
#pragma unroll
  for (int s = 0; s < kOwned; ++s) {
    // Infinity stands for NaN too where no code can tell of it.
    const auto bits = static_cast<typename Element::Storage>(
        min(static_cast<uint32_t>(Peak<Element>::Bits(peaks[s])),
            static_cast<uint32_t>(Element::kInfinity)));
    made[s] = scales(Element::LaneToFloat(bits));
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const float factor = __shfl_sync(kFullWarp, made[i % kOwned].factor, Warp::OwnerOf(lane, i));
    uint32_t codes[kCodeWords<Codes, kElements>];
    EncodeSmall<Codes>(items[i], factor, codes);
    emit(i, codes);
  }
}

// Eight (or four) e2m1 codes to floats. The magnitudes are f16 numbers with an empty low byte, so a
// byte permutation looks up four at once.
template <int kElements>
__device__ __forceinline__ void FloatsOfE2M1(uint32_t packed, float (&out)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements / 4; ++i) {
    const uint32_t four = packed >> (16 * i);
    // 0, 0.5, 1, 1.5 and 2, 3, 4, 6
    const uint32_t high = __byte_perm(0x3e3c3800u, 0x46444240u, four & 0x7777u);
    const uint32_t low_pair =
        __byte_perm(high, 0, 0x1404) | (four << 12 & 0x8000u) | (four << 24 & 0x80000000u);
    const uint32_t high_pair =
        __byte_perm(high, 0, 0x3424) | (four << 4 & 0x8000u) | (four << 16 & 0x80000000u);
    FloatsOfPair<F16Element>(low_pair, out[4 * i], out[4 * i + 1]);
    FloatsOfPair<F16Element>(high_pair, out[4 * i + 2], out[4 * i + 3]);
  }
}

template <typename Codes, int kElements>
__device__ __forceinline__ void DecodeSmall(const uint32_t (&codes)[kCodeWords<Codes, kElements>],
                                            float (&out)[kElements]) {
  if constexpr (Codes::kPerByte == 1) {
#pragma unroll
    for (int i = 0; i < kElements / 4; ++i) {
      float quad[4];
      FloatsOfE4M3(codes[i], quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) out[4 * i + j] = quad[j];
    }
  } else {
    FloatsOfE2M1(codes[0], out);
  }
}

}  // namespace moe_ep::cuda
