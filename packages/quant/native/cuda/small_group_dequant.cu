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
struct Divisor {
  float divisor;
  float reciprocal;
  bool plain;

  static __device__ __forceinline__ Divisor Of(float divisor) {
    return {divisor, 1.0f / divisor, divisor > 0x1p-90f && divisor < 0x1p90f};
  }
  __device__ __forceinline__ float Divide(float product) const {
    if (!plain) return product / divisor;
    float quotient = product * reciprocal;
    quotient = __fmaf_rn(__fmaf_rn(-quotient, divisor, product), reciprocal, quotient);
    return copysignf(quotient, product);  // the correction makes a positive zero of a negative one
  }
};

constexpr int kThreads = 128;
constexpr int kRows = 8;

// Rows of whole vectors: a warp takes kRows rows of 32 vectors.
template <typename Element, typename Format>
__global__ void __launch_bounds__(kThreads)
    DequantizeSmallTiles(const __grid_constant__ Small m, int64_t column_tiles, int64_t tiles) {
  using Codes = typename Format::Codes;
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kWords = kCodeWords<Codes, kElements>;
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const bool failed = Failed(m.record);
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
  Divisor divisor = {};
  if constexpr (Format::kDivide) divisor = Divisor::Of(*m.global);
  if (failed) return;
  auto* out = static_cast<typename Element::Storage*>(m.out) + place;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float factor = Format::Scale(scale[r]);
    float values[kElements];
    DecodeSmall<Codes>(codes[r], values);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      values[i] *= factor;
      if constexpr (Format::kDivide) values[i] = divisor.Divide(values[i]);
    }
    if (first + r < m.rows) {
      LaneVector<Element, kElements>::OfFloats(values).Store(out + r * m.hidden);
    }
  }
}

// One element after the other, for rows without the alignment for vectors.
template <typename Element, typename Format>
__global__ void __launch_bounds__(kThreads)
    DequantizeSmallElements(const __grid_constant__ Small m, int64_t blocks_per_row) {
  using Codes = typename Format::Codes;
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t column = blockIdx.x % blocks_per_row * kThreads + threadIdx.x;
  if (column >= m.hidden || Failed(m.record)) return;
  const int64_t at = row * m.hidden + column;
  uint8_t code = m.values[at / Codes::kPerByte];
  if constexpr (Codes::kPerByte == 2) code = (code >> (column % 2 * 4)) & 0xf;
  const float scale = Format::Scale(m.ScaleCode(row, column / Format::kGroup));
  float value = Codes::Decode(code) * scale;
  if constexpr (Format::kDivide) value = value / *m.global;
  static_cast<typename Element::Storage*>(m.out)[at] = Element::LaneFromFloat(value);
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
      Launch(DequantizeSmallTiles<Element, Format>, {BlocksFor(tiles, kThreads / 32), kThreads},
             exec.cuda_stream(), m, column_tiles, tiles);
    } else {
      const int64_t blocks = CeilDiv(m.hidden, kThreads);
      Launch(DequantizeSmallElements<Element, Format>, {BlocksFor(rows * blocks, 1), kThreads},
             exec.cuda_stream(), m, blocks);
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
