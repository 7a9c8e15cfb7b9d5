#include "moe_ep/quant/group_dequant.h"
#include "cpu/group_quant.h"
#include "moe_ep/isa.h"

namespace moe_ep::cpu {
namespace {

template <typename Element>
MOE_EP_LANE void DequantizeRows(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  auto* elements = static_cast<typename Element::Storage*>(matrix.elements);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * matrix.hidden;
    DequantizeRowPerGroup<Element>(matrix.values + at, matrix.scales.Row(row), matrix.hidden,
                                   matrix.group_size, elements + at);
  }
}

MOE_EP_CLONES void DequantizeBF16(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  DequantizeRows<BF16Element>(matrix, begin, end);
}
MOE_EP_CLONES void DequantizeF16(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  DequantizeRows<F16Element>(matrix, begin, end);
}
MOE_EP_CLONES void DequantizeF32(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  DequantizeRows<F32Element>(matrix, begin, end);
}

}  // namespace

void DequantizePerTokenGroup(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
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
