#include "cpu/silu_mul.h"

#include <memory>

#include "moe_ep/isa.h"
#include "moe_ep/quant/silu_mul.h"

namespace moe_ep::cpu {
namespace {

MOE_EP_CLONES void RowBF16(const void* x, int64_t hidden, float limit, void* out) {
  SiluMulRow<BF16Element>(static_cast<const uint16_t*>(x), hidden, limit,
                          static_cast<uint16_t*>(out));
}
MOE_EP_CLONES void RowF16(const void* x, int64_t hidden, float limit, void* out) {
  SiluMulRow<F16Element>(static_cast<const uint16_t*>(x), hidden, limit,
                         static_cast<uint16_t*>(out));
}
MOE_EP_CLONES void RowF32(const void* x, int64_t hidden, float limit, void* out) {
  SiluMulRow<F32Element>(static_cast<const uint32_t*>(x), hidden, limit,
                         static_cast<uint32_t*>(out));
}
MOE_EP_CLONES void RowBF16ToF32(const void* x, int64_t hidden, float limit, void* out) {
  SiluMulRowF32<BF16Element>(static_cast<const uint16_t*>(x), hidden, limit,
                             static_cast<uint32_t*>(out));
}
MOE_EP_CLONES void RowF16ToF32(const void* x, int64_t hidden, float limit, void* out) {
  SiluMulRowF32<F16Element>(static_cast<const uint16_t*>(x), hidden, limit,
                            static_cast<uint32_t*>(out));
}

using RowFunction = void (*)(const void* x, int64_t hidden, float limit, void* out);

RowFunction RowFunctionOf(DType dtype, bool to_f32) {
  switch (dtype) {
    case DType::kBF16:
      return to_f32 ? RowBF16ToF32 : RowBF16;
    case DType::kF16:
      return to_f32 ? RowF16ToF32 : RowF16;
    default:
      return RowF32;
  }
}

int64_t BytesOf(DType dtype) { return BitsOf(dtype) / 8; }

}  // namespace

void SiluMul(const GatedMatrix& matrix, void* out, int64_t begin, int64_t end) {
  const RowFunction function = RowFunctionOf(matrix.dtype, false);
  const int64_t bytes = matrix.hidden * BytesOf(matrix.dtype);
  for (int64_t row = begin; row < end; ++row) {
    function(static_cast<const uint8_t*>(matrix.x) + row * 2 * bytes, matrix.hidden, matrix.limit,
             static_cast<uint8_t*>(out) + row * bytes);
  }
}

void SiluMulQuantize(const GatedMatrix& matrix, const GroupQuantMatrix& quantized, ScaleRule rule,
                     int64_t begin, int64_t end) {
  const bool to_f32 = rule.numerics == GroupNumerics::kReciprocal;
  const RowFunction function = RowFunctionOf(matrix.dtype, to_f32);
  const int64_t bytes = 2 * matrix.hidden * BytesOf(matrix.dtype);
  const auto product = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(matrix.hidden));
  GroupQuantMatrix row_matrix = quantized;
  row_matrix.dtype = to_f32 ? DType::kF32 : matrix.dtype;
  row_matrix.elements = product.get();
  for (int64_t row = begin; row < end; ++row) {
    function(static_cast<const uint8_t*>(matrix.x) + row * bytes, matrix.hidden, matrix.limit,
             product.get());
    row_matrix.values = quantized.values + row * matrix.hidden;
    row_matrix.scales.data = quantized.scales.data + row * quantized.scales.row_stride;
    QuantizePerTokenGroup(row_matrix, rule, 0, 1);
  }
}

}  // namespace moe_ep::cpu
