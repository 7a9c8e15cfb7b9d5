// Codes of MXFP8, MXFP4 and NVFP4 for vectors in registers: the device's form of small_groups.h,
// equal bit for bit.
#pragma once

#include <cstdint>
#include <type_traits>

#include "moe_ep/quant/lane_vector.cuh"
#include "moe_ep/quant/small_groups.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

// Bytes of a vector's codes, as words; of four fp4 codes half a word is used.
template <typename Codes, int kElements>
inline constexpr int kCodeWords = (kElements / Codes::kPerByte + 3) / 4;

// Codes of value * factor. kNumbers: no product is NaN.
template <typename Codes, bool kNumbers, typename Vector>
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
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      uint32_t code;
      if constexpr (kNumbers) {
        constexpr int32_t kLargest = 0x40c00000;  // 6
        const int32_t bits = lanes::SignedBitsOf(x[i]);
        const int32_t magnitude = min(bits & lanes::kMagnitudeMask, kLargest);
        const auto rounded = static_cast<uint32_t>(lanes::EncodeMagnitude<2, 1>(magnitude));
        code = (rounded & 0x7u) | (static_cast<uint32_t>(bits) >> 28 & 0x8u);
      } else {
        code = lanes::FloatToFp4E2M1(x[i]);
      }
      packed |= code << (4 * i);
    }
    codes[0] = packed;
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
  bool numbers = true;
  bool nan = false;
#pragma unroll
  for (int s = 0; s < kOwned; ++s) {
    nan = nan || Peak<Element>::Bits(peaks[s]) > Element::kInfinity;
  }
  if (Codes::kNaN && __any_sync(kFullWarp, nan)) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) peaks[i] = items[i].NumbersPeakOf();
    Warp::Reduce(peaks, larger);
  }
#pragma unroll
  for (int s = 0; s < kOwned; ++s) {
    // Infinity stands for NaN too where no code can tell of it.
    const auto bits = static_cast<typename Element::Storage>(
        min(static_cast<uint32_t>(Peak<Element>::Bits(peaks[s])),
            static_cast<uint32_t>(Element::kInfinity)));
    made[s] = scales(Element::LaneToFloat(bits));
    numbers = numbers && bits < Element::kInfinity &&
              (__float_as_uint(made[s].factor) & 0x7fffffffu) < 0x7f800000u;
  }
  numbers = __all_sync(kFullWarp, numbers);
  const auto encode = [&](auto known) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const float factor = __shfl_sync(kFullWarp, made[i % kOwned].factor, Warp::OwnerOf(lane, i));
      uint32_t codes[kCodeWords<Codes, kElements>];
      EncodeSmall<Codes, decltype(known)::value>(items[i], factor, codes);
      emit(i, codes);
    }
  };
  if (Codes::kPerByte == 1 || numbers) {
    encode(std::true_type());
  } else {
    encode(std::false_type());
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
