// Rows cut into pieces of shared memory's size: the unit of work of a warp.
#pragma once

#include <cstdint>

namespace moe_ep::cuda {

// All pieces of a row but the last are equally long.
struct RowPieces {
  int64_t row_bytes;
  int64_t bytes;  // of a piece
  int64_t count;  // of a row

  // Pieces of at most `most_bytes`, a multiple of `granule`.
  static RowPieces Of(int64_t row_bytes, int64_t most_bytes, int64_t granule = 16) {
    const int64_t count = (row_bytes + most_bytes - 1) / most_bytes;
    const int64_t bytes = ((row_bytes + count - 1) / count + granule - 1) / granule * granule;
    return {row_bytes, bytes, (row_bytes + bytes - 1) / bytes};
  }

  __device__ uint32_t BytesAt(int64_t offset) const {
    const int64_t left = row_bytes - offset;
    return static_cast<uint32_t>(left < bytes ? left : bytes);
  }
};

}  // namespace moe_ep::cuda
