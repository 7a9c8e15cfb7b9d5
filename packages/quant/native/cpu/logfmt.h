// LogFMT-10 on the cpu: rows of moe_ep/quant/logfmt.h, a range at a time.
#pragma once

#include <cstdint>

#include "operands.h"

namespace moe_ep::cpu {

void QuantizeLogFmt10(const LogFmtMatrix& matrix, int64_t begin, int64_t end);
void DequantizeLogFmt10(const LogFmtMatrix& matrix, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
