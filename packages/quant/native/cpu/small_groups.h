// MXFP8, MXFP4 and NVFP4 on the cpu: rows of moe_ep/quant/small_groups.h, a range at a time.
#pragma once

#include <cstdint>

#include "moe_ep/quant/small_groups.h"
#include "operands.h"

namespace moe_ep::cpu {

void QuantizeMx(const SmallGroupMatrix& matrix, MxScaleRule rule, int64_t begin, int64_t end);
void DequantizeMx(const SmallGroupMatrix& matrix, int64_t begin, int64_t end);
void QuantizeNvfp4(const SmallGroupMatrix& matrix, float global, int64_t begin, int64_t end);
void DequantizeNvfp4(const SmallGroupMatrix& matrix, float global, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
