// Top-k expert ids of either integer width, read as 64-bit values.
#pragma once

#include <cstdint>

#include "moe_ep/host_device.h"
#include "moe_ep/tensor.h"

namespace moe_ep {

struct TopkIds {
  const void* data;
  bool wide;  // i64, else i32

  explicit TopkIds(const Tensor& tensor)
      : data(tensor.data()), wide(tensor.dtype() == DType::kI64) {}

  MOE_EP_HOST_DEVICE int64_t operator[](int64_t index) const {
    return wide ? static_cast<const int64_t*>(data)[index]
                : static_cast<const int32_t*>(data)[index];
  }
};

MOE_EP_HOST_DEVICE bool IsInvalidId(int64_t id, int64_t experts) {
  return id < -1 || id >= experts;
}

// Position of the first id that is neither -1 nor an expert; -1 when all are fine.
inline int64_t FindInvalidId(const TopkIds& ids, int64_t count, int64_t experts) {
  for (int64_t i = 0; i < count; ++i) {
    if (IsInvalidId(ids[i], experts)) return i;
  }
  return -1;
}

}  // namespace moe_ep
