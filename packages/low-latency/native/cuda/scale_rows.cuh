// Where scales of a byte each go: a row's lie next to each other, as rows of scales do in quant's
// operations.
#pragma once

#include <cstdint>

#include "moe_ep/tensor.h"

namespace moe_ep::cuda {

struct ScaleRows {
  uint8_t* data;   // null where scales are words, or absent
  int bytes;       // of a row
  int unit_bytes;  // 16, 4 or 1: what rows are whole units of, and begin at

  static ScaleRows Of(const Tensor& scales) {
    auto* const data = scales.data<uint8_t>();
    const auto bytes = static_cast<int>(scales.size(2));
    const auto whole = [&](int unit) {
      return bytes % unit == 0 && reinterpret_cast<uintptr_t>(data) % unit == 0;
    };
    return {data, bytes, whole(16) ? 16 : whole(4) ? 4 : 1};
  }

  // Rows of a list, from from_of(i) to row to_of(i). All threads of the block call it.
  template <typename FromOf, typename ToOf>
  __device__ void Copy(int listed, const FromOf& from_of, const ToOf& to_of) const {
    if (unit_bytes == 16) return CopyUnits<uint4>(listed, from_of, to_of);
    if (unit_bytes == 4) return CopyUnits<uint32_t>(listed, from_of, to_of);
    CopyUnits<uint8_t>(listed, from_of, to_of);
  }

 private:
  template <typename Unit, typename FromOf, typename ToOf>
  __device__ void CopyUnits(int listed, const FromOf& from_of, const ToOf& to_of) const {
    const int units = bytes / static_cast<int>(sizeof(Unit));
#pragma unroll 1
    for (int i = threadIdx.x; i < listed * units; i += static_cast<int>(blockDim.x)) {
      const int row = i / units;
      const int unit = i - row * units;
      const auto* const from = reinterpret_cast<const Unit*>(from_of(row));
      reinterpret_cast<Unit*>(data + to_of(row) * bytes)[unit] = __ldcg(from + unit);
    }
  }
};

}  // namespace moe_ep::cuda
