// Strips of kRows rows of a batch of matrices. Where counts tell which rows are in use, each block
// looks at all of them once, so that nobody meets strips of which no row is.
#pragma once

#include <cstdint>

#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {

struct Strip {
  int64_t matrix;
  int64_t first_row;
  int64_t rows;  // of the matrix that are in use: none of the strip's may be
};

template <int kRows>
class UsedStrips {
 public:
  static constexpr int kMostMatrices = 512;  // of more than these all strips are taken

  struct Memory {
    int64_t ends[kMostMatrices];  // strips of all matrices up to this one
  };

  static constexpr int64_t OfMatrix(const MaskedBatch& batch) { return CeilDiv(batch.rows, kRows); }

  // All threads of a block make it together, when counts are there.
  __device__ __forceinline__ UsedStrips(const MaskedBatch& batch, Memory& memory)
      : batch_(batch),
        memory_(memory),
        counted_(batch.counts != nullptr && batch.batch <= kMostMatrices) {
    if (!counted_) return;
    const int lane = LaneOfWarp();
    int64_t before = 0;
    for (int first = 0; threadIdx.x < 32 && first < batch.batch; first += 32) {
      const int matrix = first + lane;
      int64_t end = matrix < batch.batch ? CeilDiv(batch.RowsOf(matrix), kRows) : 0;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(kFullWarp, end, step);
        if (lane >= step) end += other;
      }
      end += before;
      if (matrix < batch.batch) memory.ends[matrix] = end;
      before = __shfl_sync(kFullWarp, end, 31);
    }
    __syncthreads();
  }

  __device__ __forceinline__ int64_t count() const {
    return counted_ ? memory_.ends[batch_.batch - 1] : batch_.batch * OfMatrix(batch_);
  }

  // Calls body(strip, column) for the tiles of a warp, until it returns false: strips fall into so
  // many `columns`.
  template <int kWarps, typename Body>
  __device__ __forceinline__ void ForTiles(int64_t columns, const Body& body) const {
    const int64_t tiles = count() * columns;
#pragma unroll 1
    for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; tile < tiles;
         tile += static_cast<int64_t>(gridDim.x) * kWarps) {
      if (!body(At(tile / columns), tile % columns)) return;
    }
  }

  // Of a whole warp.
  __device__ __forceinline__ Strip At(int64_t strip) const {
    int64_t matrix = 0;
    int64_t begin = 0;
    if (counted_) {
      for (int first = 0; first < batch_.batch; first += 32) {
        const int other = first + LaneOfWarp();
        const bool ended = other < batch_.batch && memory_.ends[other] <= strip;
        matrix += __popc(__ballot_sync(kFullWarp, ended));
      }
      if (matrix > 0) begin = memory_.ends[matrix - 1];
    } else if (batch_.batch > 1) {
      const int64_t of_matrix = OfMatrix(batch_);
      matrix = strip / of_matrix;
      begin = matrix * of_matrix;
    }
    return {matrix, (strip - begin) * kRows, batch_.RowsOf(matrix)};
  }

 private:
  const MaskedBatch& batch_;
  const Memory& memory_;
  bool counted_;
};

// Blocks for so many tiles, `warps` in each. Where counts may leave most tiles out, about as many
// as run at a time, which go from tile to tile.
inline dim3 BlocksForTiles(const Exec& exec, const MaskedBatch& batch, int64_t tiles, int warps) {
  if (batch.counts == nullptr) return BlocksFor(tiles, warps);
  return GridFor(CeilDiv(tiles, warps), exec.device(), 64 / warps);
}

}  // namespace moe_ep::cuda
