// The threads of a warp.
#pragma once

#include <cstdint>

namespace moe_ep::cuda {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

}  // namespace moe_ep::cuda
