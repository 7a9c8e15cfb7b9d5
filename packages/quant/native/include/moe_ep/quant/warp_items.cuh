// Reductions of many vectors of a warp at once. A warp holds `kItems` vectors (items); each is 32
// lanes wide and falls into groups of `kGroupLanes` neighbouring lanes. After the reduction each
// lane owns the results of some items for its group, so that what follows (a scale from an amax,
// say) is computed once and not by each lane of the group.
#pragma once

#include <cstdint>

namespace moe_ep::cuda {

inline constexpr uint32_t kFullWarp = 0xffffffffu;

__device__ __forceinline__ int LaneOfWarp() { return static_cast<int>(threadIdx.x & 31u); }

template <int kGroupLanes, int kItems>
struct WarpItems {
  static_assert((kItems & (kItems - 1)) == 0 && (kGroupLanes & (kGroupLanes - 1)) == 0);
  // Items that a lane owns, and lanes that own the same.
  static constexpr int kOwned = kItems > kGroupLanes ? kItems / kGroupLanes : 1;
  static constexpr int kCopies = kItems > kGroupLanes ? 1 : kGroupLanes / kItems;

  static __device__ __forceinline__ int FirstOwned(int lane) {
    return lane % kGroupLanes / kCopies * kOwned;
  }
  // Of the lanes with the same items one writes.
  static __device__ __forceinline__ bool Writes(int lane) { return lane % kCopies == 0; }
  static __device__ __forceinline__ int GroupOf(int lane) { return lane / kGroupLanes; }
  // A lane of the same group that owns `item`, at place item % kOwned.
  static __device__ __forceinline__ int OwnerOf(int lane, int item) {
    return lane / kGroupLanes * kGroupLanes + item / kOwned * kCopies;
  }

  // Reduces each item over the lanes of each group; the first kOwned values are the owned ones.
  // Each step halves the items that a lane has left: half as many exchanges as item by item.
  template <typename Larger>
  static __device__ __forceinline__ void Reduce(uint32_t (&values)[kItems], Larger larger) {
    const int lane = LaneOfWarp();
    int left = kItems;
#pragma unroll
    for (int step = kGroupLanes / 2; step > 0; step /= 2) {
      if (left > 1) {
        left /= 2;
        const bool upper = (lane & step) != 0;
#pragma unroll
        for (int i = 0; i < kItems / 2; ++i) {
          if (i >= left) break;
          const uint32_t mine = upper ? values[i + left] : values[i];
          const uint32_t other = upper ? values[i] : values[i + left];
          values[i] = larger(mine, __shfl_xor_sync(kFullWarp, other, step));
        }
      } else {
        values[0] = larger(values[0], __shfl_xor_sync(kFullWarp, values[0], step));
      }
    }
  }
};

}  // namespace moe_ep::cuda
