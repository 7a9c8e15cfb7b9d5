#include "cpu/logfmt.h"

#include "moe_ep/isa.h"
#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/logfmt.h"

namespace moe_ep::cpu {
namespace {

template <typename Element>
MOE_EP_LANE void DequantizeRows(const LogFmtMatrix& m, int64_t begin, int64_t end) {
  auto* elements = static_cast<typename Element::Storage*>(m.elements);
  const int64_t ranges = 2 * NumGroups(m.hidden, LogFmt10::kGroup);
  for (int64_t row = begin; row < end; ++row) {
    DequantizeLogFmt10Row<Element>(m.codes + row * LogFmt10::RowBytes(m.hidden),
                                   m.ranges + row * ranges, m.hidden, elements + row * m.hidden);
  }
}

MOE_EP_CLONES void DequantizeBF16(const LogFmtMatrix& matrix, int64_t begin, int64_t end) {
  DequantizeRows<BF16Element>(matrix, begin, end);
}
MOE_EP_CLONES void DequantizeF16(const LogFmtMatrix& matrix, int64_t begin, int64_t end) {
  DequantizeRows<F16Element>(matrix, begin, end);
}
MOE_EP_CLONES void DequantizeF32(const LogFmtMatrix& matrix, int64_t begin, int64_t end) {
  DequantizeRows<F32Element>(matrix, begin, end);
}

MOE_EP_CLONES void QuantizeRows(const LogFmtMatrix& m, int64_t begin, int64_t end) {
  const auto* elements = static_cast<const uint16_t*>(m.elements);
  const int64_t ranges = 2 * NumGroups(m.hidden, LogFmt10::kGroup);
  for (int64_t row = begin; row < end; ++row) {
    QuantizeLogFmt10Row(elements + row * m.hidden, m.hidden,
                        m.codes + row * LogFmt10::RowBytes(m.hidden), m.ranges + row * ranges);
  }
}

}  // namespace

void QuantizeLogFmt10(const LogFmtMatrix& matrix, int64_t begin, int64_t end) {
  QuantizeRows(matrix, begin, end);
}

void DequantizeLogFmt10(const LogFmtMatrix& matrix, int64_t begin, int64_t end) {
  switch (matrix.dtype) {
    case DType::kBF16:
      return DequantizeBF16(matrix, begin, end);
    case DType::kF16:
      return DequantizeF16(matrix, begin, end);
    default:
      return DequantizeF32(matrix, begin, end);
  }
}

}  // namespace moe_ep::cpu
