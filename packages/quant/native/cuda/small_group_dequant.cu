#include <algorithm>

#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/small_groups.cuh"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {
namespace {

struct Small {
  const uint8_t* values;
  const uint8_t* scales;
  void* out;
  int64_t rows;
  int64_t hidden;
  int64_t row_scales;
  bool swizzled;
  const float* global;  // NVFP4
  const moe_ep_failure_record* record;

  __device__ __forceinline__ uint8_t ScaleCode(int64_t row, int64_t group) const {
    return scales[swizzled ? SwizzledScaleIndex(row, group, row_scales) : row * row_scales + group];
  }
};

template <typename Codes_>
struct MxFormat {
  using Codes = Codes_;
  static constexpr int kGroup = 32;
  static constexpr bool kDivide = false;
  static __device__ __forceinline__ float Scale(uint8_t code) { return E8M0ToFloat(code); }
};
struct Nvfp4Format {
  using Codes = E2M1Codes;
  static constexpr int kGroup = 16;
  static constexpr bool kDivide = true;
  static __device__ __forceinline__ float Scale(uint8_t code) {
    return lanes::Fp8E4M3ToFloat(code);
  }
};

// Products of an e2m1 code and an e4m3 scale, divided by one number: the quotient of its rounded
// reciprocal, corrected once by what is left over. That is the division's result for all 13
// significands of products and all 2^23 of divisors (tried for each pair), as long as nothing comes
// near the ends of f32's range.
struct PlainDivisor {
  float divisor;
  float reciprocal;

  static __device__ __forceinline__ bool Holds(float divisor) {
    return divisor > 0x1p-90f && divisor < 0x1p90f;
  }
  explicit __device__ __forceinline__ PlainDivisor(float divisor)
      : divisor(divisor), reciprocal(1.0f / divisor) {}

  __device__ __forceinline__ float Divide(float product) const {
    float quotient = product * reciprocal;
    quotient = __fmaf_rn(__fmaf_rn(-quotient, divisor, product), reciprocal, quotient);
    return copysignf(quotient, product);  // the correction makes a positive zero of a negative one
  }
};

// What the e2m1 codes of one group stand for, as 16-bit elements: the eight magnitudes' bytes, for
// a byte permutation looks up four at once, and what a code's sign does.
template <typename Element>
struct E2M1Elements {
  uint32_t low[2];
  uint32_t high[2];
  uint32_t sign;

  // Of the quotients of 1 and 3 times the scale: the other magnitudes are theirs times powers of
  // two, which a plain divisor keeps exact.
  __device__ __forceinline__ E2M1Elements(float one, float three) {
    const uint32_t pairs[4] = {
        PairOfFloats<Element>(0.0f * one, 0.5f * one),
        PairOfFloats<Element>(one, 0.5f * three),
        PairOfFloats<Element>(2.0f * one, three),
        PairOfFloats<Element>(4.0f * one, 2.0f * three),
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      low[i] = __byte_perm(pairs[2 * i], pairs[2 * i + 1], 0x6420);
      high[i] = __byte_perm(pairs[2 * i], pairs[2 * i + 1], 0x7531);
    }
    sign = isnan(one) ? 0u : 0x8000u;  // NaN stays canonical
  }

  __device__ __forceinline__ LaneVector<Element, 8> Of(uint32_t codes) const {
    LaneVector<Element, 8> v;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t four = codes >> (16 * i);
      const uint32_t magnitudes = four & 0x7777u;
      const uint32_t signs = __byte_perm(sign, 0, four >> 3 & 0x1111u);
      const uint32_t bottom = __byte_perm(low[0], low[1], magnitudes);
      const uint32_t top = __byte_perm(high[0], high[1], magnitudes) ^ signs;
      v.words[2 * i] = __byte_perm(bottom, top, 0x5140);
      v.words[2 * i + 1] = __byte_perm(bottom, top, 0x7362);
    }
    return v;
  }
};

template <typename Element, typename Format>
__device__ __forceinline__ void DequantizeElement(const Small& m, int64_t row, int64_t column) {
  using Codes = typename Format::Codes;
  const int64_t at = row * m.hidden + column;
  uint8_t code = m.values[at / Codes::kPerByte];
  if constexpr (Codes::kPerByte == 2) code = (code >> (column % 2 * 4)) & 0xf;
  float value = Codes::Decode(code) * Format::Scale(m.ScaleCode(row, column / Format::kGroup));
  if constexpr (Format::kDivide) value = value / *m.global;
  static_cast<typename Element::Storage*>(m.out)[at] = Element::LaneFromFloat(value);
}

// Elements of the codes of a vector, which one scale has.
template <typename Element, typename Format, int kWords>
__device__ __forceinline__ LaneVector<Element, kLoadElements<Element>> DequantizeVector(
    const uint32_t (&codes)[kWords], float scale, const PlainDivisor& divisor) {
  constexpr int kElements = kLoadElements<Element>;
  if constexpr (Format::kDivide && kElements == 8) {
    const E2M1Elements<Element> elements(divisor.Divide(scale), divisor.Divide(3.0f * scale));
    return elements.Of(codes[0]);
  } else {
    float values[kElements];
    DecodeSmall<typename Format::Codes>(codes, values);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      values[i] *= scale;
      if constexpr (Format::kDivide) values[i] = divisor.Divide(values[i]);
    }
    return LaneVector<Element, kElements>::OfFloats(values);
  }
}

constexpr int kThreads = 128;
constexpr int kRows = 8;

// Rows of whole vectors: a warp takes kRows rows of 32 vectors.
template <typename Element, typename Format>
__global__ void __launch_bounds__(kThreads)
    DequantizeSmallTiles(const __grid_constant__ Small m, int64_t column_tiles, int64_t tiles) {
  using Codes = typename Format::Codes;
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kWords = kCodeWords<Codes, kElements>;
  StartBehindPrevious();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const bool failed = FailedBefore(m.record);
  const int64_t first = tile / column_tiles * kRows;
  const int64_t column = (tile % column_tiles * 32 + LaneOfWarp()) * kElements;
  if (column >= m.hidden) return;
  const int64_t place = first * m.hidden + column;
  const int64_t group = column / Format::kGroup;
  uint32_t codes[kRows][kWords];
  uint8_t scale[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const uint8_t* from = m.values + (place + r * m.hidden) / Codes::kPerByte;
    if constexpr (kElements / Codes::kPerByte == 2) {
      codes[r][0] = first + r < m.rows ? *reinterpret_cast<const uint16_t*>(from) : 0u;
    } else {
      LoadWordsIf(first + r < m.rows, from, codes[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    scale[r] = first + r < m.rows ? m.ScaleCode(first + r, group) : uint8_t{0};
  }
  const float global = Format::kDivide ? *m.global : 1.0f;
  if (failed) return;
  if (Format::kDivide && !PlainDivisor::Holds(global)) {
    // Rare, and long where it is inlined for each element.
#pragma unroll 1
    for (int64_t row = first; row < min(first + kRows, m.rows); ++row) {
#pragma unroll 1
      for (int i = 0; i < kElements; ++i) DequantizeElement<Element, Format>(m, row, column + i);
    }
    return;
  }
  const PlainDivisor divisor(global);
  auto* out = static_cast<typename Element::Storage*>(m.out) + place;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float factor = Format::Scale(scale[r]);
    if (first + r < m.rows) {
      DequantizeVector<Element, Format>(codes[r], factor, divisor).Store(out + r * m.hidden);
    }
  }
}

// One element after the other, for rows without the alignment for vectors.
template <typename Element, typename Format>
__global__ void __launch_bounds__(kThreads)
    DequantizeSmallElements(const __grid_constant__ Small m, int64_t blocks_per_row) {
  StartBehindPrevious();
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t column = blockIdx.x % blocks_per_row * kThreads + threadIdx.x;
  if (column >= m.hidden || FailedBefore(m.record)) return;
  DequantizeElement<Element, Format>(m, row, column);
}

template <typename Format>
void Dequantize(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows,
                const float* global) {
  const Small m = {
      .values = matrix.values,
      .scales = matrix.scales,
      .out = matrix.elements,
      .rows = rows,
      .hidden = matrix.hidden,
      .row_scales = matrix.row_scales,
      .swizzled = matrix.swizzled,
      .global = global,
      .record = exec.cuda_skip(),
  };
  WithElement(matrix.dtype, [&](auto element) {
    using Element = decltype(element);
    constexpr int64_t kElements = kLoadElements<Element>;
    if (Aligned16(m.values, m.out) && m.hidden % kElements == 0) {
      const int64_t column_tiles = CeilDiv(m.hidden, 32 * kElements);
      const int64_t tiles = CeilDiv(rows, kRows) * column_tiles;
      LaunchBehind(exec, DequantizeSmallTiles<Element, Format>, BlocksFor(tiles, kThreads / 32),
                   kThreads, m, column_tiles, tiles);
    } else {
      const int64_t blocks = CeilDiv(m.hidden, kThreads);
      LaunchBehind(exec, DequantizeSmallElements<Element, Format>, BlocksFor(rows * blocks, 1),
                   kThreads, m, blocks);
    }
  });
}

}  // namespace

void DequantizeMx(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows) {
  if (matrix.code_dtype == DType::kFp8E4M3) {
    Dequantize<MxFormat<E4M3Codes>>(exec, matrix, rows, nullptr);
  } else {
    Dequantize<MxFormat<E2M1Codes>>(exec, matrix, rows, nullptr);
  }
}

void DequantizeNvfp4(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows,
                     const float* global) {
  Dequantize<Nvfp4Format>(exec, matrix, rows, global);
}

}  // namespace moe_ep::cuda
