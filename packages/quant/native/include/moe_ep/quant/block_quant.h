// Matrices to fp8 e4m3 with one f32 scale for each block of rows and columns, and back: one row of
// blocks. README.md defines every value.
//
// Call these from a function marked MOE_EP_CLONES (moe_ep/isa.h); they are forced into it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe_ep/quant/group_dequant.h"
#include "moe_ep/quant/group_quant.h"

namespace moe_ep {

// A row of blocks: `rows` rows of `columns` elements, cut into blocks of `block` columns.
struct BlockRow {
  int64_t rows;
  int64_t columns;
  int64_t block;
};

// scale = max(1e-4, amax) / 448, or the smallest power of two not below it; codes of x * (1 /
// scale).
MOE_EP_LANE GroupScale BlockScaleOf(float amax, bool power_of_two) {
  const float exact = std::max(1e-4f, amax) / 448.0f;
  const float scale = power_of_two ? PowerOfTwoNotBelow(exact) : exact;
  return {scale, 1.0f / scale};
}

template <typename Element>
MOE_EP_LANE void QuantizeBlockRow(const typename Element::Storage* x, BlockRow shape,
                                  bool power_of_two, uint8_t* values, float* scales) {
  using Storage = typename Element::Storage;
  for (int64_t begin = 0, b = 0; begin < shape.columns; begin += shape.block, ++b) {
    const int64_t count = std::min(shape.block, shape.columns - begin);
    Storage largest = 0;
    for (int64_t row = 0; row < shape.rows; ++row) {
      largest =
          std::max(largest, detail::LargestBits<Element>(x + row * shape.columns + begin, count));
    }
    const bool plain = largest < Element::kPlainLimit;
    if (!plain) {
      largest = 0;
      for (int64_t row = 0; row < shape.rows; ++row) {
        const Storage* part = x + row * shape.columns + begin;
        largest = std::max(largest, detail::LargestNumberBits<Element>(part, count));
      }
    }
    const GroupScale made = BlockScaleOf(Element::ToFloat(largest), power_of_two);
    scales[b] = made.scale;
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int64_t at = row * shape.columns + begin;
      if (plain) {
        detail::EncodePlainGroup<Element, Encoding::kMultiply>(x + at, count, {made.factor, 0.0f},
                                                               values + at);
      } else {
        for (int64_t i = at; i < at + count; ++i) {
          values[i] = lanes::FloatToFp8E4M3(Element::ToFloat(x[i]) * made.factor);
        }
      }
    }
  }
}

template <typename Element>
MOE_EP_LANE void DequantizeBlockRow(const uint8_t* values, const float* scales, BlockRow shape,
                                    typename Element::Storage* out) {
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t begin = 0, b = 0; begin < shape.columns; begin += shape.block, ++b) {
      const int64_t at = row * shape.columns + begin;
      const int64_t count = std::min(shape.block, shape.columns - begin);
      detail::DequantizeGroup<Element>(values + at, scales[b], count, out + at);
    }
  }
}

}  // namespace moe_ep
