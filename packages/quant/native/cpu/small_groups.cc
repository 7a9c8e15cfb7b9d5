#include "cpu/small_groups.h"

#include "moe_ep/isa.h"

namespace moe_ep::cpu {
namespace {

MOE_EP_LANE uint8_t* ScaleAt(const SmallGroupMatrix& m, int64_t row, int64_t group) {
  return m.scales +
         (m.swizzled ? SwizzledScaleIndex(row, group, m.row_scales) : row * m.row_scales + group);
}

template <typename Element, typename Codes, typename Scales>
MOE_EP_LANE void QuantizeRows(const SmallGroupMatrix& m, Scales scales, int64_t begin,
                              int64_t end) {
  const auto* elements = static_cast<const typename Element::Storage*>(m.elements);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * m.hidden;
    QuantizeSmallGroups<Element, Codes>(
        elements + at, m.hidden, scales, m.values + at / Codes::kPerByte,
        [&](int64_t group, uint8_t code) MOE_EP_LANE_LAMBDA { *ScaleAt(m, row, group) = code; });
  }
}

template <typename Element, typename Codes>
MOE_EP_LANE void DequantizeMxRows(const SmallGroupMatrix& m, int64_t begin, int64_t end) {
  auto* elements = static_cast<typename Element::Storage*>(m.elements);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * m.hidden;
    DequantizeSmallGroups<Element, Codes, MxScales<Codes>::kGroup, false>(
        m.values + at / Codes::kPerByte, m.hidden, 1.0f,
        [&](int64_t group) MOE_EP_LANE_LAMBDA { return E8M0ToFloat(*ScaleAt(m, row, group)); },
        elements + at);
  }
}

template <typename Element>
MOE_EP_LANE void DequantizeNvfp4Rows(const SmallGroupMatrix& m, float global, int64_t begin,
                                     int64_t end) {
  auto* elements = static_cast<typename Element::Storage*>(m.elements);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * m.hidden;
    DequantizeSmallGroups<Element, E2M1Codes, Nvfp4Scales::kGroup, true>(
        m.values + at / 2, m.hidden, global,
        [&](int64_t group)
            MOE_EP_LANE_LAMBDA { return lanes::Fp8E4M3ToFloat(*ScaleAt(m, row, group)); },
        elements + at);
  }
}

template <typename Element>
MOE_EP_LANE void QuantizeMxRows(const SmallGroupMatrix& m, MxScaleRule rule, int64_t begin,
                                int64_t end) {
  if (m.code_dtype == DType::kFp8E4M3) {
    QuantizeRows<Element, E4M3Codes>(m, MxScales<E4M3Codes>{rule}, begin, end);
  } else {
    QuantizeRows<Element, E2M1Codes>(m, MxScales<E2M1Codes>{rule}, begin, end);
  }
}

template <typename Element>
MOE_EP_LANE void DequantizeMxAny(const SmallGroupMatrix& m, int64_t begin, int64_t end) {
  if (m.code_dtype == DType::kFp8E4M3) {
    DequantizeMxRows<Element, E4M3Codes>(m, begin, end);
  } else {
    DequantizeMxRows<Element, E2M1Codes>(m, begin, end);
  }
}

// One cloned function for each dtype: clones cannot be templates.
#define MOE_EP_SMALL_GROUPS(NAME, ELEMENT)                                                         \
  MOE_EP_CLONES void QuantizeMx##NAME(const SmallGroupMatrix& m, MxScaleRule rule, int64_t begin,  \
                                      int64_t end) {                                               \
    QuantizeMxRows<ELEMENT>(m, rule, begin, end);                                                  \
  }                                                                                                \
  MOE_EP_CLONES void DequantizeMx##NAME(const SmallGroupMatrix& m, int64_t begin, int64_t end) {   \
    DequantizeMxAny<ELEMENT>(m, begin, end);                                                       \
  }                                                                                                \
  MOE_EP_CLONES void QuantizeNvfp4##NAME(const SmallGroupMatrix& m, float global, int64_t begin,   \
                                         int64_t end) {                                            \
    QuantizeRows<ELEMENT, E2M1Codes>(m, Nvfp4Scales::Of(global), begin, end);                      \
  }                                                                                                \
  MOE_EP_CLONES void DequantizeNvfp4##NAME(const SmallGroupMatrix& m, float global, int64_t begin, \
                                           int64_t end) {                                          \
    DequantizeNvfp4Rows<ELEMENT>(m, global, begin, end);                                           \
  }

MOE_EP_SMALL_GROUPS(BF16, BF16Element)
MOE_EP_SMALL_GROUPS(F16, F16Element)
MOE_EP_SMALL_GROUPS(F32, F32Element)

#undef MOE_EP_SMALL_GROUPS

}  // namespace

#define MOE_EP_DISPATCH(FUNCTION, ...)    \
  switch (matrix.dtype) {                 \
    case DType::kBF16:                    \
      return FUNCTION##BF16(__VA_ARGS__); \
    case DType::kF16:                     \
      return FUNCTION##F16(__VA_ARGS__);  \
    default:                              \
      return FUNCTION##F32(__VA_ARGS__);  \
  }

void QuantizeMx(const SmallGroupMatrix& matrix, MxScaleRule rule, int64_t begin, int64_t end) {
  MOE_EP_DISPATCH(QuantizeMx, matrix, rule, begin, end)
}

void DequantizeMx(const SmallGroupMatrix& matrix, int64_t begin, int64_t end) {
  MOE_EP_DISPATCH(DequantizeMx, matrix, begin, end)
}

void QuantizeNvfp4(const SmallGroupMatrix& matrix, float global, int64_t begin, int64_t end) {
  MOE_EP_DISPATCH(QuantizeNvfp4, matrix, global, begin, end)
}

void DequantizeNvfp4(const SmallGroupMatrix& matrix, float global, int64_t begin, int64_t end) {
  MOE_EP_DISPATCH(DequantizeNvfp4, matrix, global, begin, end)
}

#undef MOE_EP_DISPATCH

}  // namespace moe_ep::cpu
