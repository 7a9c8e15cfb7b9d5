// Rows as they travel, on the cpu.
#pragma once

#include <cstdint>

#include "row_format.h"

namespace moe_ep::cpu {

// Writes a row's codes and scales, as quant's operations give them. Any format but bf16, whose rows
// travel as they are. `global_scale`: of NVFP4.
void CastRow(RowFormat format, float global_scale, const uint16_t* x, int64_t hidden, uint8_t* row);

// Bytes that CastRow writes; of bf16, those of x.
int64_t RowBytes(RowFormat format, int64_t hidden);

}  // namespace moe_ep::cpu
