// Zeroes between the columns of column-major scales: the device's form of cpu/scale_matrix.h.
#pragma once

#include <cstdint>

#include "cuda/launching.cuh"
#include "moe_ep/quant/scales.h"

namespace moe_ep::cuda {

// A launch of its own only where there are gaps, which needs rows. Directly behind the launch that
// fills the columns. `matrices` of the same shape lie `stride` bytes apart.
void ZeroColumnPadding(const Exec& exec, const ScaleMatrix& scales, int64_t matrices = 1,
                       int64_t stride = 0);

}  // namespace moe_ep::cuda
