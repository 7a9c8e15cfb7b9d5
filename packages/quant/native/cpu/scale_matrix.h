// What column-major scales need beside their rows.
#pragma once

#include <cstdint>

#include "moe_ep/quant/scales.h"

namespace moe_ep::cpu {

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
