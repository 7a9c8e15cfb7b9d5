#include "cpu/tensor_quant.h"

#include "moe_ep/isa.h"
#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/tensor_quant.h"

namespace moe_ep::cpu {
namespace {

template <typename Element>
MOE_EP_LANE float Largest(const void* x, int64_t begin, int64_t end) {
  const auto* elements = static_cast<const typename Element::Storage*>(x);
  return Element::ToFloat(detail::LargestNumberBits<Element>(elements + begin, end - begin));
}

template <typename Element>
MOE_EP_LANE void Quantize(const void* x, float reciprocal, uint8_t* values, int64_t begin,
                          int64_t end) {
  const auto* elements = static_cast<const typename Element::Storage*>(x);
  QuantizeElements<Element>(elements + begin, end - begin, reciprocal, values + begin);
}

MOE_EP_CLONES float LargestBF16(const void* x, int64_t begin, int64_t end) {
  return Largest<BF16Element>(x, begin, end);
}
MOE_EP_CLONES float LargestF16(const void* x, int64_t begin, int64_t end) {
  return Largest<F16Element>(x, begin, end);
}
MOE_EP_CLONES float LargestF32(const void* x, int64_t begin, int64_t end) {
  return Largest<F32Element>(x, begin, end);
}
MOE_EP_CLONES void QuantizeBF16(const void* x, float r, uint8_t* values, int64_t begin,
                                int64_t end) {
  Quantize<BF16Element>(x, r, values, begin, end);
}
MOE_EP_CLONES void QuantizeF16(const void* x, float r, uint8_t* values, int64_t begin,
                               int64_t end) {
  Quantize<F16Element>(x, r, values, begin, end);
}
MOE_EP_CLONES void QuantizeF32(const void* x, float r, uint8_t* values, int64_t begin,
                               int64_t end) {
  Quantize<F32Element>(x, r, values, begin, end);
}

}  // namespace

float LargestMagnitude(DType dtype, const void* x, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::kBF16:
      return LargestBF16(x, begin, end);
    case DType::kF16:
      return LargestF16(x, begin, end);
    default:
      return LargestF32(x, begin, end);
  }
}

void QuantizePerTensor(DType dtype, const void* x, float scale, uint8_t* values, int64_t begin,
                       int64_t end) {
  const float reciprocal = 1.0f / scale;
  switch (dtype) {
    case DType::kBF16:
      return QuantizeBF16(x, reciprocal, values, begin, end);
    case DType::kF16:
      return QuantizeF16(x, reciprocal, values, begin, end);
    default:
      return QuantizeF32(x, reciprocal, values, begin, end);
  }
}

}  // namespace moe_ep::cpu
