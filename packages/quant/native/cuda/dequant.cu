#include <algorithm>

#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/group_dequant.cuh"
#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {
namespace {

// Where the scale of an element lies: Column(column) is the part that all rows share, Load takes
// the rest.
struct GroupScales {
  const uint8_t* data;
  int64_t row_stride;     // bytes
  int64_t column_stride;  // bytes
  int64_t group_size;
  bool packed;

  __device__ __forceinline__ int64_t Column(int64_t column) const {
    const int64_t group = column / group_size;
    return packed ? (group >> 2) * column_stride + (group & 3) : group * column_stride;
  }
  __device__ __forceinline__ float Load(int64_t row, int64_t column) const {
    const uint8_t* at = data + row * row_stride + column;
    return packed ? E8M0ToFloat(*at) : *reinterpret_cast<const float*>(at);
  }
};

struct BlockScales {
  const float* data;
  int64_t rows;  // of a matrix
  int64_t block_rows;
  int64_t block_columns;
  int64_t columns;     // of scales
  int64_t per_matrix;  // rows of scales

  __device__ __forceinline__ int64_t Column(int64_t column) const { return column / block_columns; }
  __device__ __forceinline__ float Load(int64_t row, int64_t column) const {
    const int64_t matrix = row / rows;
    const int64_t block_row = matrix * per_matrix + (row - matrix * rows) / block_rows;
    return data[block_row * columns + column];
  }
};

struct Shape {
  const uint8_t* values;
  void* out;
  int64_t rows;
  int64_t hidden;
  const moe_ep_failure_record* record;
};

constexpr int kThreads = 128;

// A warp takes kRows rows of 32 vectors, which no scale's border cuts.
template <typename Element, typename Scales, int kRows>
__global__ void __launch_bounds__(kThreads)
    DequantizeTiles(const __grid_constant__ Shape m, const __grid_constant__ Scales scales,
                    int64_t column_tiles, int64_t tiles) {
  constexpr int kElements = kLoadElements<Element>;
  StartBehindPrevious();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const bool failed = FailedBefore(m.record);
  const int64_t first = tile / column_tiles * kRows;
  const int64_t column = (tile % column_tiles * 32 + LaneOfWarp()) * kElements;
  if (column >= m.hidden) return;
  const int64_t place = first * m.hidden + column;
  const int64_t scale_column = scales.Column(column);
  uint32_t codes[kRows][kElements / 4];
  float scale[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    LoadWordsIf(first + r < m.rows, m.values + place + r * m.hidden, codes[r]);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    scale[r] = first + r < m.rows ? scales.Load(first + r, scale_column) : 0.0f;
  }
  if (failed) return;
  auto* out = static_cast<typename Element::Storage*>(m.out) + place;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto values = DequantizeE4M3<Element>(codes[r], scale[r]);
    if (first + r < m.rows) values.Store(out + r * m.hidden);
  }
}

// One element after the other, for rows without the alignment for vectors.
template <typename Element, typename Scales>
__global__ void __launch_bounds__(kThreads)
    DequantizeElements(const __grid_constant__ Shape m, const __grid_constant__ Scales scales,
                       int64_t blocks_per_row) {
  StartBehindPrevious();
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t column = blockIdx.x % blocks_per_row * kThreads + threadIdx.x;
  if (column >= m.hidden || FailedBefore(m.record)) return;
  const int64_t at = row * m.hidden + column;
  const float scale = scales.Load(row, scales.Column(column));
  static_cast<typename Element::Storage*>(m.out)[at] =
      Element::FromFloat(lanes::Fp8E4M3ToFloat(m.values[at]) * scale);
}

// `multiple`: elements between borders of scales are a multiple of it, unless a row ends.
template <typename Scales>
void Dequantize(const Exec& exec, DType dtype, const Shape& m, const Scales& scales,
                int64_t multiple) {
  WithElement(dtype, [&](auto element) {
    using Element = decltype(element);
    constexpr int64_t kElements = kLoadElements<Element>;
    constexpr int64_t kWarps = kThreads / 32;
    constexpr int kRows = 8;
    if (Aligned16(m.values, m.out) && m.hidden % kElements == 0 &&
        (multiple % kElements == 0 || multiple >= m.hidden)) {
      const int64_t column_tiles = CeilDiv(m.hidden, 32 * kElements);
      const int64_t tiles = CeilDiv(m.rows, kRows) * column_tiles;
      LaunchBehind(exec, DequantizeTiles<Element, Scales, kRows>, BlocksFor(tiles, kWarps),
                   kThreads, m, scales, column_tiles, tiles);
    } else {
      const int64_t blocks = CeilDiv(m.hidden, kThreads);
      LaunchBehind(exec, DequantizeElements<Element, Scales>, BlocksFor(m.rows * blocks, 1),
                   kThreads, m, scales, blocks);
    }
  });
}

}  // namespace

void DequantizePerTokenGroup(const Exec& exec, const GroupQuantMatrix& matrix, int64_t rows) {
  const Shape m = {matrix.values, matrix.elements, rows, matrix.hidden, exec.cuda_skip()};
  const GroupScales scales = {matrix.scales.data, matrix.scales.row_stride,
                              matrix.scales.column_stride, matrix.group_size, matrix.scales.packed};
  Dequantize(exec, matrix.dtype, m, scales, matrix.group_size);
}

void DequantizeBlock(const Exec& exec, const BlockQuantMatrices& matrices, int64_t batch) {
  const Shape m = {matrices.values, matrices.elements, batch * matrices.rows, matrices.columns,
                   exec.cuda_skip()};
  const BlockScales scales = {.data = matrices.scales,
                              .rows = matrices.rows,
                              .block_rows = matrices.block_rows,
                              .block_columns = matrices.block_columns,
                              .columns = NumGroups(matrices.columns, matrices.block_columns),
                              .per_matrix = NumGroups(matrices.rows, matrices.block_rows)};
  Dequantize(exec, matrices.dtype, m, scales, matrices.block_columns);
}

}  // namespace moe_ep::cuda
