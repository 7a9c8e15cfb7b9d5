#include "cpu/block_quant.h"

#include <algorithm>

#include "moe_ep/isa.h"
#include "moe_ep/quant/block_quant.h"

namespace moe_ep::cpu {
namespace {

// Where a row of blocks lies.
struct Place {
  int64_t element;
  int64_t scale;
  BlockRow shape;
};

MOE_EP_LANE Place PlaceOf(const BlockQuantMatrices& m, int64_t block_row) {
  const int64_t per_matrix = NumGroups(m.rows, m.block_rows);
  const int64_t first = (block_row % per_matrix) * m.block_rows;
  return {
      .element = (block_row / per_matrix * m.rows + first) * m.columns,
      .scale = block_row * NumGroups(m.columns, m.block_columns),
      .shape = {std::min(m.block_rows, m.rows - first), m.columns, m.block_columns},
  };
}

template <typename Element>
MOE_EP_LANE void QuantizeRows(const BlockQuantMatrices& m, bool power_of_two, int64_t begin,
                              int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Place at = PlaceOf(m, row);
    const auto* elements = static_cast<const typename Element::Storage*>(m.elements);
    QuantizeBlockRow<Element>(elements + at.element, at.shape, power_of_two, m.values + at.element,
                              m.scales + at.scale);
  }
}

template <typename Element>
MOE_EP_LANE void DequantizeRows(const BlockQuantMatrices& m, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Place at = PlaceOf(m, row);
    auto* elements = static_cast<typename Element::Storage*>(m.elements);
    DequantizeBlockRow<Element>(m.values + at.element, m.scales + at.scale, at.shape,
                                elements + at.element);
  }
}

MOE_EP_CLONES void QuantizeBF16(const BlockQuantMatrices& m, bool power, int64_t begin,
                                int64_t end) {
  QuantizeRows<BF16Element>(m, power, begin, end);
}
MOE_EP_CLONES void QuantizeF16(const BlockQuantMatrices& m, bool power, int64_t begin,
                               int64_t end) {
  QuantizeRows<F16Element>(m, power, begin, end);
}
MOE_EP_CLONES void QuantizeF32(const BlockQuantMatrices& m, bool power, int64_t begin,
                               int64_t end) {
  QuantizeRows<F32Element>(m, power, begin, end);
}
MOE_EP_CLONES void DequantizeBF16(const BlockQuantMatrices& m, int64_t begin, int64_t end) {
  DequantizeRows<BF16Element>(m, begin, end);
}
MOE_EP_CLONES void DequantizeF16(const BlockQuantMatrices& m, int64_t begin, int64_t end) {
  DequantizeRows<F16Element>(m, begin, end);
}
MOE_EP_CLONES void DequantizeF32(const BlockQuantMatrices& m, int64_t begin, int64_t end) {
  DequantizeRows<F32Element>(m, begin, end);
}

}  // namespace

void QuantizeBlock(const BlockQuantMatrices& matrices, bool power_of_two, int64_t begin,
                   int64_t end) {
  switch (matrices.dtype) {
    case DType::kBF16:
      return QuantizeBF16(matrices, power_of_two, begin, end);
    case DType::kF16:
      return QuantizeF16(matrices, power_of_two, begin, end);
    default:
      return QuantizeF32(matrices, power_of_two, begin, end);
  }
}

void DequantizeBlock(const BlockQuantMatrices& matrices, int64_t begin, int64_t end) {
  switch (matrices.dtype) {
    case DType::kBF16:
      return DequantizeBF16(matrices, begin, end);
    case DType::kF16:
      return DequantizeF16(matrices, begin, end);
    default:
      return DequantizeF32(matrices, begin, end);
  }
}

}  // namespace moe_ep::cpu
