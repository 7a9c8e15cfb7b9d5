// silu(gate) * up of matrices on the cpu, a range of rows at a time.
#pragma once

#include <cstdint>

#include "cpu/group_quant.h"

namespace moe_ep::cpu {

// out[row, hidden] of the input's dtype, for rows [begin, end).
void SiluMul(const GatedMatrix& matrix, void* out, int64_t begin, int64_t end);

// The same, quantised by `rule`. `quantized` is a matrix of values and scales; its elements are not
// used. kReciprocal keeps f32 between the two steps, other rules the input's dtype; kMaskedBF16
// needs bf16.
void SiluMulQuantize(const GatedMatrix& matrix, const GroupQuantMatrix& quantized, ScaleRule rule,
                     int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
