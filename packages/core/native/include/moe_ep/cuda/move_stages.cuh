// A warp's pieces of memory on their way from one place to one or several, through shared memory:
// loads run ahead of stores by all but one stage. Addresses and sizes are multiples of 16 bytes.
#pragma once

#include <cstdint>

#include "moe_ep/cuda/bulk_copy.cuh"

namespace moe_ep::cuda {

inline constexpr int kMoveWarps = 8;  // of a block
inline constexpr int kMoveThreads = kMoveWarps * 32;
inline constexpr int kMoveStages = 3;
inline constexpr int64_t kMostMovedBytes = 8192;
// Shared memory of a warp for its stages and whatever else its kernel needs.
inline constexpr int64_t kMoveWarpBytes = (int64_t{226} << 10) / kMoveWarps;

struct MoveStages {
  uint8_t* stages;
  uint64_t* full;  // one each
  int64_t stage_bytes;
  int lane;
  int load_stage = 0;
  int stage = 0;
  uint32_t parity = 0;

  // Asks for a piece. At most kMoveStages - 1 are asked for and not stored.
  __device__ void Load(const uint8_t* from, uint32_t bytes) {
    if (lane == 0) {
      ArriveExpecting(&full[load_stage], bytes);
      BulkLoad(stages + load_stage * stage_bytes, from, bytes, &full[load_stage]);
    }
    if (++load_stage == kMoveStages) load_stage = 0;
  }
  // Stores the piece that was asked for first: a place of each lane, null for none.
  __device__ void Store(uint8_t* to, uint32_t bytes) {
    WaitBarrier(&full[stage], parity);
    if (to != nullptr) BulkStore(to, stages + stage * stage_bytes, bytes);
    CommitBulkStores();
    // The stage before this one is free when its stores have read it.
    WaitBulkStoresRead<1>();
    __syncwarp();
    if (++stage == kMoveStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Moves what a cursor walks over. `to(cursor)` gives each lane its place for a piece. Where the
// walk ends early, at `stop(cursor)`, pieces that were asked for stay for the next call; `ahead` is
// the cursor of loads.
template <typename Cursor, typename Stop, typename To>
__device__ __forceinline__ void MoveUntil(MoveStages& stages, Cursor& cursor, Cursor& ahead,
                                          const Stop& stop, const To& to) {
  while (!cursor.done() && !stop(cursor)) {
    stages.Store(to(cursor), cursor.bytes());
    cursor.Next();
    if (ahead.done()) continue;
    stages.Load(ahead.from(), ahead.bytes());
    ahead.Next();
  }
}

// Asks for the first pieces, so that MoveUntil finds them.
template <typename Cursor>
__device__ __forceinline__ void LoadFirst(MoveStages& stages, Cursor& ahead) {
  for (int i = 0; i < kMoveStages - 1 && !ahead.done(); ++i) {
    stages.Load(ahead.from(), ahead.bytes());
    ahead.Next();
  }
}

}  // namespace moe_ep::cuda
