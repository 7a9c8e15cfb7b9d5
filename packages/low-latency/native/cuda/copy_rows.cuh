// Rows on their way from messages to where experts have them, by bulk copies through shared memory:
// these need no registers, so that a few warps have as much under way as memory can serve.
#pragma once

#include "cuda/device_buffer.cuh"
#include "moe_ep/cuda/bulk_copy.cuh"

namespace moe_ep::cuda {

inline constexpr int kStages = 24 / kWarps;  // of a warp
inline constexpr int kMostPieceBytes = 3840;

struct alignas(16) CopyStages {
  uint8_t bytes[kWarps][kStages][kMostPieceBytes];
  uint64_t full[kWarps][kStages];
};
static_assert(kMostPieceBytes % 16 == 0);

// How rows are cut into pieces that fit into a stage: whole vectors of 16 bytes.
struct RowPieces {
  int row_bytes;
  int piece_bytes;
  int count;

  static RowPieces Of(int64_t row_bytes) {
    const auto bytes = static_cast<int>(row_bytes);
    const int count = (bytes + kMostPieceBytes - 1) / kMostPieceBytes;
    return {bytes, ((bytes + count - 1) / count + 15) / 16 * 16, count};
  }
  __device__ int BytesOf(int piece) const {
    return min(piece_bytes, row_bytes - piece * piece_bytes);
  }
};

// The copies of one warp. Lanes other than the first one do nothing.
class RowCopier {
 public:
  __device__ RowCopier(const RowPieces& pieces, CopyStages* stages)
      : pieces_(pieces), stages_(stages) {
    if (!Copies()) return;
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) InitBarrier(&Full(stage), 1);
    FenceBarriers();
  }

  // Asks for the first pieces of this warp's share of `rows` rows, from from_of(row), which were
  // written before a barrier of the block.
  template <typename FromOf>
  __device__ __forceinline__ void Begin(int rows, const FromOf& from_of) {
    if (!Copies()) return;
    FenceGlobalForBulk();
#pragma unroll 1
    for (int stage = 0; stage < kStages; ++stage)
      Load(stage, threadIdx.x / kLanes + stage * kWarps, rows, from_of);
  }

  // Brings them to to_of(row), and the rest of the share. What was brought is there for kernels
  // that follow.
  template <typename FromOf, typename ToOf>
  __device__ __forceinline__ void Finish(int rows, const FromOf& from_of, const ToOf& to_of) {
    if (!Copies()) return;
    int stage = 0;
#pragma unroll 1
    for (int unit = threadIdx.x / kLanes; unit < rows * pieces_.count; unit += kWarps) {
      const int row = unit / pieces_.count;
      const int piece = unit - row * pieces_.count;
      WaitBarrier(&Full(stage), parity_ >> stage & 1u);
      parity_ ^= 1u << stage;
      BulkStore(to_of(row) + piece * pieces_.piece_bytes, Stage(stage),
                static_cast<uint32_t>(pieces_.BytesOf(piece)));
      CommitBulkStores();
      if (unit + kStages * kWarps < rows * pieces_.count) {
        WaitBulkStoresRead<0>();
        Load(stage, unit + kStages * kWarps, rows, from_of);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    WaitBulkStores<0>();
  }

 private:
  __device__ static bool Copies() { return threadIdx.x % kLanes == 0; }
  __device__ uint8_t* Stage(int stage) const { return stages_->bytes[threadIdx.x / kLanes][stage]; }
  __device__ uint64_t& Full(int stage) const { return stages_->full[threadIdx.x / kLanes][stage]; }

  template <typename FromOf>
  __device__ __forceinline__ void Load(int stage, int unit, int rows, const FromOf& from_of) const {
    const int row = unit / pieces_.count;
    if (row >= rows) return;
    const int piece = unit - row * pieces_.count;
    const auto bytes = static_cast<uint32_t>(pieces_.BytesOf(piece));
    ArriveExpecting(&Full(stage), bytes);
    BulkLoad(Stage(stage), from_of(row) + piece * pieces_.piece_bytes, bytes, &Full(stage));
  }

  const RowPieces& pieces_;
  CopyStages* stages_;
  uint32_t parity_ = 0;  // of the phase that each stage waits for
};

}  // namespace moe_ep::cuda
