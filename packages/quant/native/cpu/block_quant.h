// Blockwise fp8 quantisation of matrices on the cpu: rows of moe_ep/quant/block_quant.h, a range at
// a time.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"

namespace moe_ep::cpu {

// Equally sized matrices one after the other, in both forms, contiguous.
struct BlockQuantMatrices {
  DType dtype;  // of `elements`: f32, f16 or bf16
  int64_t rows;
  int64_t columns;
  int64_t block_rows;
  int64_t block_columns;
  void* elements;   // [batch, rows, columns]
  uint8_t* values;  // [batch, rows, columns], fp8 e4m3
  float* scales;    // [batch, ceil(rows / block_rows), ceil(columns / block_columns)]
};

// Rows of blocks [begin, end), counted over all matrices: elements to values and scales.
void QuantizeBlock(const BlockQuantMatrices& matrices, bool power_of_two, int64_t begin,
                   int64_t end);

// Rows of blocks [begin, end), counted over all matrices: values and scales to elements.
void DequantizeBlock(const BlockQuantMatrices& matrices, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
