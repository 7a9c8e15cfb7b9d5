// MXFP8, MXFP4 and NVFP4 on the cpu: rows of moe_ep/quant/small_groups.h, a range at a time.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"
#include "moe_ep/quant/small_groups.h"

namespace moe_ep::cpu {

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

void QuantizeMx(const SmallGroupMatrix& matrix, MxScaleRule rule, int64_t begin, int64_t end);
void DequantizeMx(const SmallGroupMatrix& matrix, int64_t begin, int64_t end);
void QuantizeNvfp4(const SmallGroupMatrix& matrix, float global, int64_t begin, int64_t end);
void DequantizeNvfp4(const SmallGroupMatrix& matrix, float global, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
