// Blockwise fp8 quantisation of matrices on the cpu: rows of moe_ep/quant/block_quant.h, a range at
// a time.
#pragma once

#include <cstdint>

#include "operands.h"

namespace moe_ep::cpu {

// Rows of blocks [begin, end), counted over all matrices: elements to values and scales.
void QuantizeBlock(const BlockQuantMatrices& matrices, bool power_of_two, int64_t begin,
                   int64_t end);

// Rows of blocks [begin, end), counted over all matrices: values and scales to elements.
void DequantizeBlock(const BlockQuantMatrices& matrices, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
