// The scales of a matrix, in any of the layouts of the package.
#pragma once

#include <cstdint>

#include "moe_ep/quant/scales.h"

namespace moe_ep::cpu {

struct ScaleMatrix {
  uint8_t* data;
  int64_t rows;
  int64_t columns;        // numbers, or words of packed scales
  int64_t row_stride;     // bytes
  int64_t column_stride;  // bytes
  bool packed;

  MOE_EP_LANE ScaleRow Row(int64_t row) const {
    return {data + row * row_stride, column_stride, packed};
  }
};

// Zeroes the elements between the last row and the next column of a column-major matrix whose
// columns are longer than its rows are many.
inline void ZeroColumnPadding(const ScaleMatrix& scales) {
  constexpr int64_t kElement = 4;
  if (scales.row_stride != kElement) return;
  for (int64_t column = 0; column + 1 < scales.columns; ++column) {
    for (int64_t at = scales.rows * kElement; at < scales.column_stride; ++at) {
      scales.data[column * scales.column_stride + at] = 0;
    }
  }
}

}  // namespace moe_ep::cpu
