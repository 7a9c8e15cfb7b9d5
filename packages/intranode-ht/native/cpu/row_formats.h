// dtypes that combine can sum: how an element is read as f32 and written back.
#pragma once

#include <cstdint>

#include "moe_ep/dtype.h"

namespace moe_ep::cpu {

// Columns summed at a time: accumulators stay in the first-level cache and every loop over them
// vectorises.
inline constexpr int64_t kColumnBlock = 512;

struct BF16Format {
  using Storage = uint16_t;
  static float Load(Storage bits) { return BF16ToFloat(bits); }
  static Storage Store(float value) { return FloatToBF16(value); }
};

struct F16Format {
  using Storage = uint16_t;
  static float Load(Storage bits) { return F16ToFloat(bits); }
  static Storage Store(float value) { return FloatToF16(value); }
};

struct F32Format {
  using Storage = uint32_t;
  static float Load(Storage bits) { return FloatOfBits(bits); }
  static Storage Store(float value) { return CanonicalF32Bits(value); }
};

// Calls function(format) for the format of a dtype that the binding has checked.
template <typename Function>
void WithFormat(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kBF16:
      return function(BF16Format{});
    case DType::kF16:
      return function(F16Format{});
    default:
      return function(F32Format{});
  }
}

}  // namespace moe_ep::cpu
