// LogFMT-10 on the cpu: rows of moe_ep/quant/logfmt.h, a range at a time.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"

namespace moe_ep::cpu {

struct LogFmtMatrix {
  DType dtype;  // of `elements`; bf16 to quantise
  int64_t hidden;
  void* elements;    // [rows, hidden]
  uint8_t* codes;    // [rows, LogFmt10::RowBytes(hidden)]
  uint16_t* ranges;  // [rows, groups, 2], bf16
};

void QuantizeLogFmt10(const LogFmtMatrix& matrix, int64_t begin, int64_t end);
void DequantizeLogFmt10(const LogFmtMatrix& matrix, int64_t begin, int64_t end);

}  // namespace moe_ep::cpu
