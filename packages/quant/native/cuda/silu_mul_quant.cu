#include <algorithm>
#include <type_traits>

#include "cuda/any_group.cuh"
#include "cuda/column_padding.cuh"
#include "cuda/divisor.cuh"
#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "cuda/stripes.cuh"
#include "cuda/used_strips.cuh"
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

// Groups of 128 in rows of whole vectors: a warp takes kRows rows of kTileColumns products, which
// multiply(gates, ups) makes. Beside the rows it is given kOtherGates and zeros, of which it must
// make zeros. Nothing is written where the stream had failed before.
template <typename Element, bool kToF32, Encoding kEncoding, int kRows, uint32_t kOtherGates = 0,
          typename Multiply>
__device__ __forceinline__ void SiluMulQuantizeTile(const Gated& m, const Strip& strip,
                                                    int64_t column_tile, bool failed,
                                                    const Multiply& multiply) {
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kVectors = kTileColumns / (32 * kElements);  // of a row
  constexpr int kItems = kRows * kVectors;
  using Vector = LaneVector<Element, kElements>;
  using Product = SiluMulVector<Element, kToF32>;
  using Warp = WarpItems<128 / kElements, kItems>;
  const int lane = LaneOfWarp();
  const auto [matrix, first_row, rows] = strip;
  if (first_row >= rows) return;
  const int64_t column = column_tile * kTileColumns + lane * kElements;
  const int64_t row_of_all = matrix * m.batch.rows + first_row;
  const int rows_here = static_cast<int>(std::min<int64_t>(rows - first_row, kRows));
  // A branch would be taken before the loads, and they would wait for the answer.
  const int rows_written = failed ? 0 : rows_here;
  const int columns_here = static_cast<int>(std::min<int64_t>(m.hidden - column, kTileColumns));
  const auto* x =
      static_cast<const typename Element::Storage*>(m.x) + row_of_all * 2 * m.hidden + column;
  uint8_t* values = m.values + row_of_all * m.hidden + column;
  const auto inside = [&](int i) {
    return i / kVectors < rows_here && i % kVectors * 32 * kElements < columns_here;
  };
  Vector gates[kItems];
  Vector ups[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t offset = i / kVectors * 2 * m.hidden + i % kVectors * 32 * kElements;
    gates[i] = Vector::template LoadIf<kOtherGates>(inside(i), x + offset);
    ups[i] = Vector::LoadIf(inside(i), x + offset + m.hidden);
  }
  Product items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) items[i] = multiply(gates[i], ups[i]);
  const float scale = QuantizeGroups<kEncoding, 128>(items, m.rule, [&](int i, const auto& codes) {
    const int64_t offset = i / kVectors * m.hidden + i % kVectors * 32 * kElements;
    if (inside(i) && i / kVectors < rows_written) StoreWords(values + offset, codes);
  });
  const int item = Warp::FirstOwned(lane);
  const int64_t group =
      column_tile * kTileGroups + item % kVectors * (kTileGroups / kVectors) + Warp::GroupOf(lane);
  if (Warp::Writes(lane) && item / kVectors < rows_written)
    m.ScalesOf(matrix).Store(first_row + item / kVectors, group, scale);
}

template <typename Element, bool kToF32, Encoding kEncoding, int kRows>
__global__ void __launch_bounds__(kTileThreads)
    SiluMulQuantizeTiles(const __grid_constant__ Gated m, int64_t columns) {
  constexpr int kWarps = kTileThreads / 32;
  __shared__ typename UsedStrips<kRows>::Memory memory;
  StartBehindPrevious();
  const UsedStrips<kRows> strips(m.batch, memory);
  const bool failed = Failed(m.record);
  strips.template ForTiles<kWarps>(columns, [&](const Strip& strip, int64_t column) {
    SiluMulQuantizeTile<Element, kToF32, kEncoding, kRows>(
        m, strip, column, failed, [&](const auto& gates, const auto& ups) {
          return SiluMul<Element, kToF32>(gates, ups, m.limit);
        });
    return true;
  });
}

constexpr uint64_t kScratchKey = 0x7175616e74000002;  // of this addon
// Registers for two rows of 16-bit products, or for one of f32.
template <bool kToF32>
constexpr int kTableThreads = kToF32 ? 1024 : 768;

// The same for many tiles of bf16: a block for each multiprocessor has a table of Silu.
template <bool kToF32, Encoding kEncoding, int kRows>
__global__ void __launch_bounds__(kTableThreads<kToF32>, 1)
    SiluMulQuantizeByTable(const __grid_constant__ Gated m, Divisor columns, StripeClaims* claims) {
  constexpr uint32_t kWarps = kTableThreads<kToF32> / 32;
  __shared__ SiluTable<kToF32> table;
  __shared__ typename UsedStrips<kRows>::Memory memory;
  __shared__ StripeMemory<kWarps> stripes;
  stripes.Start();
  table.Fill();
  StartBehindPrevious();
  __syncthreads();
  const UsedStrips<kRows> strips(m.batch, memory);
  const bool failed = FailedBefore(m.record);
  const auto tiles = static_cast<uint32_t>(strips.count()) * columns.value();
  ForStripes(stripes, claims, CeilDiv(tiles, kWarps), [&](uint32_t stripe) {
    const uint32_t tile = stripe * kWarps + threadIdx.x / 32;
    if (tile >= tiles) return;
    const uint32_t strip = columns.QuotientOf(tile);
    SiluMulQuantizeTile<BF16Element, kToF32, kEncoding, kRows, SiluTable<kToF32>::kOne>(
        m, strips.At(strip), tile - strip * columns.value(), failed,
        [&](const auto& gates, const auto& ups) {
          return SiluMulByTable<kToF32>(table, gates, ups, m.limit);
        });
  });
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
  constexpr int kWarps = kTileThreads / 32;
  const MaskedBatch& batch = m.batch;
  if (m.group_size == 128 && Aligned16(m.x, m.values) && m.hidden % kElements == 0) {
    constexpr int kRows = sizeof(typename Element::Storage) == 2 && !kToF32 ? 2 : 1;
    const int64_t columns = CeilDiv(m.hidden, kTileColumns);
    const int64_t tiles = batch.batch * UsedStrips<kRows>::OfMatrix(batch) * columns;
    if constexpr (std::is_same_v<Element, BF16Element>) {
      // A table takes a few tiles of each warp to pay. It counts tiles in 32 bits.
      constexpr int kThreads = kTableThreads<kToF32>;
      const int blocks = Multiprocessors(exec.device());
      if (tiles >= int64_t{2} * blocks * (kThreads / 32) && tiles < int64_t{1} << 31) {
        return LaunchBehind(exec, SiluMulQuantizeByTable<kToF32, kEncoding, kRows>,
                            dim3(static_cast<unsigned>(blocks)), kThreads, m,
                            Divisor(static_cast<uint32_t>(columns)),
                            exec.CudaScratch<StripeClaims>(kScratchKey, 1));
      }
    }
    LaunchBehind(exec, SiluMulQuantizeTiles<Element, kToF32, kEncoding, kRows>,
                 BlocksForTiles(exec, batch, tiles, kWarps), kTileThreads, m, columns);
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
