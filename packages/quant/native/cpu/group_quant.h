// Groupwise fp8 quantisation of matrices on the cpu: rows of moe_ep/quant/group_quant.h, a range at
// a time.
#pragma once

#include <cstdint>

#include "moe_ep/quant/group_quant.h"
#include "operands.h"

namespace moe_ep::cpu {

// Rows [begin, end): elements to values and scales. kMaskedBF16 is for bf16 elements only.
void QuantizePerTokenGroup(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                           int64_t end);

// Rows [begin, end): values and scales to elements.
void DequantizePerTokenGroup(const GroupQuantMatrix& matrix, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
