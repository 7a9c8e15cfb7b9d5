// Groupwise fp8 quantisation of matrices on the cpu: rows of moe_ep/quant/group_quant.h, a range at
// a time.
#pragma once

#include <cstdint>

#include "cpu/scale_matrix.h"
#include "moe_ep/dtype.h"
#include "moe_ep/quant/group_quant.h"

namespace moe_ep::cpu {

// A matrix in both forms.
struct GroupQuantMatrix {
  DType dtype;  // of `elements`: f32, f16 or bf16
  int64_t hidden;
  int64_t group_size;
  void* elements;   // [rows, hidden], contiguous
  uint8_t* values;  // [rows, hidden], contiguous, fp8 e4m3
  ScaleMatrix scales;
};

// Rows [begin, end): elements to values and scales. kMaskedBF16 is for bf16 elements only.
void QuantizePerTokenGroup(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                           int64_t end);

// Rows [begin, end): values and scales to elements.
void DequantizePerTokenGroup(const GroupQuantMatrix& matrix, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
