// What the bindings of all operations share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/scale_matrix.h"
#include "cuda/quant.h"
#include "moe_ep/addon.h"

namespace moe_ep {

// Whether there are functions behind cuda/quant.h. To be asked with `if constexpr`: nothing that is
// called there is then needed without CUDA.
inline constexpr bool kCuda = MOE_EP_CUDA != 0;

// Rows that are worth a thread: waking one costs as much as some ten thousand elements.
inline int64_t GrainOf(int64_t hidden) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, hidden));
}

// Scales [rows, groups or words] in the tensor's last two dimensions; `matrix` counts those before.
inline ScaleMatrix ScalesOf(const Tensor& scales, int64_t matrix = 0) {
  constexpr int64_t kElement = 4;
  const int row = scales.dims() - 2;
  const int64_t offset = row > 0 ? matrix * scales.stride(0) * kElement : 0;
  return {
      .data = scales.data<uint8_t>() + offset,
      .rows = scales.size(row),
      .columns = scales.size(row + 1),
      .row_stride = scales.stride(row) * kElement,
      .column_stride = scales.stride(row + 1) * kElement,
      .packed = scales.dtype() == DType::kI32,
  };
}

// The parts of the addon; each names the functions of a file.
void ExportGroupQuant(Napi::Env env, Napi::Object exports);
void ExportSiluMul(Napi::Env env, Napi::Object exports);
void ExportBlockQuant(Napi::Env env, Napi::Object exports);
void ExportTensorQuant(Napi::Env env, Napi::Object exports);
void ExportSmallGroups(Napi::Env env, Napi::Object exports);
void ExportLogFmt(Napi::Env env, Napi::Object exports);

}  // namespace moe_ep
