// Groupwise fp8 quantisation of matrices on the cpu: rows of moe_ep/quant/group_quant.h, a range at
// a time.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"
#include "moe_ep/quant/group_quant.h"

namespace moe_ep::cpu {

// A matrix in both forms. All parts are row-major and contiguous.
struct GroupQuantMatrix {
  DType dtype;  // of `elements`: f32, f16 or bf16
  int64_t hidden;
  int64_t group_size;
  void* elements;   // [rows, hidden]
  uint8_t* values;  // [rows, hidden], fp8 e4m3
  float* scales;    // [rows, NumGroups(hidden, group_size)]
};

// Rows [begin, end): elements to values and scales.
void QuantizePerTokenGroup(const GroupQuantMatrix& matrix, GroupNumerics numerics, int64_t begin,
                           int64_t end);

// Rows [begin, end): values and scales to elements.
void DequantizePerTokenGroup(const GroupQuantMatrix& matrix, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
