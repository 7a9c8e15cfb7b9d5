#include "cpu/group_quant.h"

#include <type_traits>

#include "moe_ep/isa.h"

namespace moe_ep::cpu {
namespace {

template <typename Element, Encoding kEncoding>
MOE_EP_LANE void QuantizeRowsAs(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                                int64_t end) {
  const auto* elements = static_cast<const typename Element::Storage*>(matrix.elements);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * matrix.hidden;
    QuantizeRowPerGroup<Element, kEncoding>(elements + at, matrix.hidden, matrix.group_size, rule,
                                            matrix.values + at, matrix.scales.Row(row));
  }
}

template <typename Element>
MOE_EP_LANE void QuantizeRows(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                              int64_t end) {
  switch (EncodingOf(rule)) {
    case Encoding::kMultiply:
      return QuantizeRowsAs<Element, Encoding::kMultiply>(matrix, rule, begin, end);
    case Encoding::kDivideSaturating:
      return QuantizeRowsAs<Element, Encoding::kDivideSaturating>(matrix, rule, begin, end);
    case Encoding::kMultiplyBF16:
      if constexpr (std::is_same_v<Element, BF16Element>) {
        QuantizeRowsAs<Element, Encoding::kMultiplyBF16>(matrix, rule, begin, end);
      }
      return;
    case Encoding::kDivide:
      return QuantizeRowsAs<Element, Encoding::kDivide>(matrix, rule, begin, end);
  }
}

// One cloned function for each dtype: clones cannot be templates.
MOE_EP_CLONES void QuantizeBF16(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                                int64_t end) {
  QuantizeRows<BF16Element>(matrix, rule, begin, end);
}
MOE_EP_CLONES void QuantizeF16(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                               int64_t end) {
  QuantizeRows<F16Element>(matrix, rule, begin, end);
}
MOE_EP_CLONES void QuantizeF32(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                               int64_t end) {
  QuantizeRows<F32Element>(matrix, rule, begin, end);
}

}  // namespace

void QuantizePerTokenGroup(const GroupQuantMatrix& matrix, ScaleRule rule, int64_t begin,
                           int64_t end) {
  switch (matrix.dtype) {
    case DType::kBF16:
      return QuantizeBF16(matrix, rule, begin, end);
    case DType::kF16:
      return QuantizeF16(matrix, rule, begin, end);
    default:
      return QuantizeF32(matrix, rule, begin, end);
  }
}

}  // namespace moe_ep::cpu
