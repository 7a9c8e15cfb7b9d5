#include "cpu/group_quant.h"

#include "moe_ep/isa.h"

namespace moe_ep::cpu {
namespace {

template <typename Element, GroupNumerics kNumerics>
MOE_EP_LANE void QuantizeRows(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  const auto* elements = static_cast<const typename Element::Storage*>(matrix.elements);
  const int64_t groups = NumGroups(matrix.hidden, matrix.group_size);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * matrix.hidden;
    QuantizeRowPerGroup<Element, kNumerics>(elements + at, matrix.hidden, matrix.group_size,
                                            matrix.values + at, matrix.scales + row * groups);
  }
}

template <typename Element>
MOE_EP_LANE void DequantizeRows(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  auto* elements = static_cast<typename Element::Storage*>(matrix.elements);
  const int64_t groups = NumGroups(matrix.hidden, matrix.group_size);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * matrix.hidden;
    DequantizeRowPerGroup<Element>(matrix.values + at, matrix.scales + row * groups, matrix.hidden,
                                   matrix.group_size, elements + at);
  }
}

// One cloned function for each combination: clones cannot be templates.
MOE_EP_CLONES void QuantizeBF16Vllm(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  QuantizeRows<BF16Element, GroupNumerics::kVllm>(matrix, begin, end);
}
MOE_EP_CLONES void QuantizeF16Vllm(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  QuantizeRows<F16Element, GroupNumerics::kVllm>(matrix, begin, end);
}
MOE_EP_CLONES void QuantizeF32Vllm(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  QuantizeRows<F32Element, GroupNumerics::kVllm>(matrix, begin, end);
}
MOE_EP_CLONES void QuantizeBF16DeepEp(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  QuantizeRows<BF16Element, GroupNumerics::kDeepEp>(matrix, begin, end);
}
MOE_EP_CLONES void QuantizeF16DeepEp(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  QuantizeRows<F16Element, GroupNumerics::kDeepEp>(matrix, begin, end);
}
MOE_EP_CLONES void QuantizeF32DeepEp(const GroupQuantMatrix& matrix, int64_t begin, int64_t end) {
  QuantizeRows<F32Element, GroupNumerics::kDeepEp>(matrix, begin, end);
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

void QuantizePerTokenGroup(const GroupQuantMatrix& matrix, GroupNumerics numerics, int64_t begin,
                           int64_t end) {
  const bool vllm = numerics == GroupNumerics::kVllm;
  switch (matrix.dtype) {
    case DType::kBF16:
      return (vllm ? QuantizeBF16Vllm : QuantizeBF16DeepEp)(matrix, begin, end);
    case DType::kF16:
      return (vllm ? QuantizeF16Vllm : QuantizeF16DeepEp)(matrix, begin, end);
    default:
      return (vllm ? QuantizeF32Vllm : QuantizeF32DeepEp)(matrix, begin, end);
  }
}

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
