#include <algorithm>
#include <type_traits>

#include "cuda/any_group.cuh"
#include "cuda/column_padding.cuh"
#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/group_quant.cuh"
#include "moe_ep/quant/silu_mul.cuh"

namespace moe_ep::cuda {
namespace {

struct Gated {
  const void* x;
  uint8_t* values;
  ScaleWriter scales;  // of the first matrix
  int64_t hidden;
  int64_t group_size;
  float limit;
  ScaleRule rule;
  MaskedBatch batch;
  const moe_ep_failure_record* record;

  __device__ __forceinline__ ScaleWriter ScalesOf(int64_t matrix) const {
    ScaleWriter writer = scales;
    writer.data += matrix * batch.scale_stride;
    return writer;
  }
};

constexpr int kTileThreads = 128;
constexpr int kTileGroups = 4;  // of 128: with packed scales the groups of one word
constexpr int kTileColumns = kTileGroups * 128;

// Groups of 128 in rows of whole vectors: a warp takes kRows rows of kTileColumns products.
template <typename Element, bool kToF32, Encoding kEncoding, int kRows>
__global__ void __launch_bounds__(kTileThreads)
    SiluMulQuantizeTiles(const __grid_constant__ Gated m, int64_t column_tiles, int64_t row_tiles,
                         int64_t tiles) {
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kVectors = kTileColumns / (32 * kElements);  // of a row
  constexpr int kItems = kRows * kVectors;
  using Vector = LaneVector<Element, kElements>;
  using Product = SiluMulVector<Element, kToF32>;
  using Warp = WarpItems<128 / kElements, kItems>;
  StartBehindPrevious();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kTileThreads / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const bool failed = Failed(m.record);
  const int lane = LaneOfWarp();
  const int64_t strip = tile / column_tiles;
  const int64_t column_tile = tile % column_tiles;
  const int64_t matrix = strip / row_tiles;
  const int64_t first_row = strip % row_tiles * kRows;
  const int64_t rows = m.batch.RowsOf(matrix);
  if (first_row >= rows) return;
  const int64_t column = column_tile * kTileColumns + lane * kElements;
  const int64_t row_of_all = matrix * m.batch.rows + first_row;
  const auto* x =
      static_cast<const typename Element::Storage*>(m.x) + row_of_all * 2 * m.hidden + column;
  uint8_t* values = m.values + row_of_all * m.hidden + column;
  const auto inside = [&](int i) {
    return first_row + i / kVectors < rows && column + i % kVectors * 32 * kElements < m.hidden;
  };
  Vector gates[kItems];
  Vector ups[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t offset = i / kVectors * 2 * m.hidden + i % kVectors * 32 * kElements;
    gates[i] = LoadGatesIf<Element, kToF32>(inside(i), x + offset);
    ups[i] = Vector::LoadIf(inside(i), x + offset + m.hidden);
  }
  if (failed) return;
  Product items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    items[i] = SiluMul<Element, kToF32>(gates[i], ups[i], m.limit);
  }
  const float scale = QuantizeGroups<kEncoding, 128>(items, m.rule, [&](int i, const auto& codes) {
    const int64_t offset = i / kVectors * m.hidden + i % kVectors * 32 * kElements;
    if (inside(i)) StoreWords(values + offset, codes);
  });
  const int item = Warp::FirstOwned(lane);
  const int64_t row = first_row + item / kVectors;
  const int64_t group =
      column_tile * kTileGroups + item % kVectors * (kTileGroups / kVectors) + Warp::GroupOf(lane);
  if (Warp::Writes(lane) && row < rows) m.ScalesOf(matrix).Store(row, group, scale);
}

constexpr int kAnyThreads = 256;

template <typename Element, bool kToF32, Encoding kEncoding>
__global__ void __launch_bounds__(kAnyThreads)
    SiluMulQuantizeAnyGroups(const __grid_constant__ Gated m) {
  StartBehindPrevious();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kAnyThreads / 32) + threadIdx.x / 32;
  const int64_t row_of_all = index / m.scales.groups;
  const int64_t group = index % m.scales.groups;
  const int64_t matrix = row_of_all / m.batch.rows;
  if (matrix >= m.batch.batch) return;
  const int64_t row = row_of_all - matrix * m.batch.rows;
  if (row >= m.batch.RowsOf(matrix) || Failed(m.record)) return;
  const int64_t begin = group * m.group_size;
  const auto* x =
      static_cast<const typename Element::Storage*>(m.x) + row_of_all * 2 * m.hidden + begin;
  const float scale = QuantizeAnyGroup<kEncoding>(
      std::min(m.group_size, m.hidden - begin), m.rule, m.values + row_of_all * m.hidden + begin,
      [&](int64_t i) {
        return SiluMulOf<Element, kToF32>(Element::LaneToFloat(x[i]),
                                          Element::LaneToFloat(x[m.hidden + i]), m.limit);
      });
  StoreScaleOf(m.ScalesOf(matrix), row, group, scale);
}

template <typename Element, bool kToF32, Encoding kEncoding>
void LaunchGated(const Exec& exec, const Gated& m) {
  constexpr int64_t kElements = kLoadElements<Element>;
  constexpr int64_t kWarps = kTileThreads / 32;
  const MaskedBatch& batch = m.batch;
  if (m.group_size == 128 && Aligned16(m.x, m.values) && m.hidden % kElements == 0) {
    constexpr int kRows = sizeof(typename Element::Storage) == 2 && !kToF32 ? 2 : 1;
    const int64_t column_tiles = CeilDiv(m.hidden, kTileColumns);
    const int64_t row_tiles = CeilDiv(batch.rows, kRows);
    const int64_t tiles = batch.batch * row_tiles * column_tiles;
    LaunchBehind(exec, SiluMulQuantizeTiles<Element, kToF32, kEncoding, kRows>,
                 BlocksFor(tiles, kWarps), kTileThreads, m, column_tiles, row_tiles, tiles);
  } else {
    const int64_t groups = batch.batch * batch.rows * m.scales.groups;
    LaunchBehind(exec, SiluMulQuantizeAnyGroups<Element, kToF32, kEncoding>,
                 BlocksFor(groups, kAnyThreads / 32), kAnyThreads, m);
  }
}

template <typename Element, bool kToF32>
void LaunchRule(const Exec& exec, const Gated& m) {
  switch (EncodingOf(m.rule)) {
    case Encoding::kMultiply:
      return LaunchGated<Element, kToF32, Encoding::kMultiply>(exec, m);
    case Encoding::kMultiplyBF16:
      if constexpr (std::is_same_v<Element, BF16Element> && !kToF32) {
        LaunchGated<Element, kToF32, Encoding::kMultiplyBF16>(exec, m);
      }
      return;
    default:  // there is no upper bound here
      return LaunchGated<Element, kToF32, Encoding::kDivide>(exec, m);
  }
}

}  // namespace

void SiluMulQuantize(const Exec& exec, const GatedMatrix& matrix, const MaskedBatch& batch,
                     const GroupQuantMatrix& quantized, ScaleRule rule) {
  const Gated m = {
      .x = matrix.x,
      .values = quantized.values,
      .scales = {quantized.scales.data, quantized.scales.row_stride, quantized.scales.column_stride,
                 NumGroups(quantized.hidden, quantized.group_size), quantized.scales.packed},
      .hidden = matrix.hidden,
      .group_size = quantized.group_size,
      .limit = matrix.limit,
      .rule = rule,
      .batch = batch,
      .record = exec.cuda_skip(),
  };
  WithElement(matrix.dtype, [&](auto element) {
    using Element = decltype(element);
    // F32 rounded to f32 twice is f32 throughout, up to the bits of NaN, which no code shows.
    if (std::is_same_v<Element, F32Element> || rule.numerics == GroupNumerics::kReciprocal) {
      LaunchRule<Element, true>(exec, m);
    } else if constexpr (!std::is_same_v<Element, F32Element>) {
      LaunchRule<Element, false>(exec, m);
    }
  });
  ZeroColumnPadding(exec, quantized.scales, batch.batch, batch.scale_stride);
}

}  // namespace moe_ep::cuda
