// Fp8 quantisation with one scale on the cpu: moe_ep/quant/tensor_quant.h on a range of elements.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"

namespace moe_ep::cpu {

// The largest magnitude of elements [begin, end); NaN is passed over.
float LargestMagnitude(DType dtype, const void* x, int64_t begin, int64_t end);

// values[i] = e4m3(x[i] * (1 / scale)) for elements [begin, end).
void QuantizePerTensor(DType dtype, const void* x, float scale, uint8_t* values, int64_t begin,
                       int64_t end);

}  // namespace moe_ep::cpu
