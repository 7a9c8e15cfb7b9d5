// The operands of the operations, for any device: what bindings hand on.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"
#include "moe_ep/quant/scales.h"

namespace moe_ep {

// A matrix in both forms.
struct GroupQuantMatrix {
  DType dtype;  // of `elements`: f32, f16 or bf16
  int64_t hidden;
  int64_t group_size;
  void* elements;   // [rows, hidden], contiguous
  uint8_t* values;  // [rows, hidden], contiguous, fp8 e4m3
  ScaleMatrix scales;
};

// Rows of gates followed by ups, contiguous.
struct GatedMatrix {
  DType dtype;
  int64_t hidden;  // gates of a row, and ups
  const void* x;   // [rows, 2 * hidden]
  float limit;
};

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

struct SmallGroupMatrix {
  DType dtype;         // of `elements`: f32, f16 or bf16
  DType code_dtype;    // of `values`: fp8 e4m3 or packed fp4 e2m1
  int64_t hidden;      // even for fp4
  void* elements;      // [rows, hidden]
  uint8_t* values;     // [rows, hidden]
  uint8_t* scales;     // [rows, groups]: e8m0, NVFP4: e4m3
  int64_t row_scales;  // scales from one row to the next
  bool swizzled;       // NVFP4: scales lie in tiles, `row_scales` is the padded number of groups
};

struct LogFmtMatrix {
  DType dtype;  // of `elements`; bf16 to quantise
  int64_t hidden;
  void* elements;    // [rows, hidden]
  uint8_t* codes;    // [rows, LogFmt10::RowBytes(hidden)]
  uint16_t* ranges;  // [rows, groups, 2], bf16
};

}  // namespace moe_ep
