#include <algorithm>
#include <limits>

#include "cuda/any_group.cuh"
#include "cuda/block_max.cuh"
#include "cuda/column_padding.cuh"
#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/group_quant.cuh"

namespace moe_ep::cuda {
namespace {

// What kernels take: the matrix, and how many rows and groups of a row there are.
struct Rows {
  const void* x;
  uint8_t* values;
  ScaleWriter scales;
  int64_t rows;
  int64_t hidden;
  int64_t group_size;
  ScaleRule rule;
  const moe_ep_failure_record* record;
};

constexpr int kTileThreads = 128;
constexpr int kTileGroups = 4;  // of 128: with packed scales the groups of one word
constexpr int kTileColumns = kTileGroups * 128;

// Groups of 128 in rows of whole vectors. A warp takes kRows rows of kTileColumns elements, all
// loads at once; of column-major scales it then writes kRows neighbours.
template <typename Element, Encoding kEncoding, int kRows>
__global__ void __launch_bounds__(kTileThreads)
    QuantizeTiles(const __grid_constant__ Rows m, int64_t column_tiles, int64_t tiles) {
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kVectors = kTileColumns / (32 * kElements);  // of a row
  constexpr int kItems = kRows * kVectors;
  using Vector = LaneVector<Element, kElements>;
  using Warp = WarpItems<128 / kElements, kItems>;
  StartBehindPrevious();
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kTileThreads / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const bool failed = FailedBefore(m.record);
  const int lane = LaneOfWarp();
  const int64_t first_row = tile / column_tiles * kRows;
  const int64_t column_tile = tile % column_tiles;
  const int64_t column = column_tile * kTileColumns + lane * kElements;
  const int64_t place = first_row * m.hidden + column;
  const auto* x = static_cast<const typename Element::Storage*>(m.x) + place;
  const auto inside = [&](int i) {
    return first_row + i / kVectors < m.rows && column + i % kVectors * 32 * kElements < m.hidden;
  };
  const auto offset = [&](int i) {
    return i / kVectors * m.hidden + i % kVectors * 32 * kElements;
  };
  Vector items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    items[i] = Vector::LoadIf(inside(i), x + offset(i));
  }
  if (failed) return;
  uint8_t* values = m.values + place;
  const float scale = QuantizeGroups<kEncoding, 128>(items, m.rule, [&](int i, const auto& codes) {
    if (inside(i)) StoreWords(values + offset(i), codes);
  });
  const int item = Warp::FirstOwned(lane);
  const int64_t row = first_row + item / kVectors;
  const int64_t group =
      column_tile * kTileGroups + item % kVectors * (kTileGroups / kVectors) + Warp::GroupOf(lane);
  if (Warp::Writes(lane) && row < m.rows) m.scales.Store(row, group, scale);
}

constexpr int kLongHeld = 4;  // vectors of a thread

// Groups of many whole vectors, a block for each, which is held in registers as far as it goes.
template <typename Element, Encoding kEncoding, int kThreads>
__global__ void __launch_bounds__(kThreads) QuantizeLongGroups(const __grid_constant__ Rows m) {
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kHeld = kLongHeld;
  using Vector = LaneVector<Element, kElements>;
  StartBehindPrevious();
  const bool failed = FailedBefore(m.record);
  const int64_t row = blockIdx.x / m.scales.groups;
  const int64_t group = blockIdx.x % m.scales.groups;
  const int64_t begin = group * m.group_size;
  const int64_t count = std::min(m.group_size, m.hidden - begin) / kElements;
  const auto* x = static_cast<const typename Element::Storage*>(m.x) + row * m.hidden + begin;
  uint8_t* values = m.values + row * m.hidden + begin;
  const int64_t first = threadIdx.x;
  Vector held[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t at = first + k * kThreads;
    held[k] = Vector::LoadIf(at < count, x + at * kElements);
  }
  if (failed) return;
  // Calls body(vector, its place) for all of the thread's vectors.
  const auto each = [&](const auto& body) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      if (first + k * kThreads < count) body(held[k], (first + k * kThreads) * kElements);
    }
    for (int64_t at = first + kHeld * kThreads; at < count; at += kThreads) {
      body(Vector::Load(x + at * kElements), at * kElements);
    }
  };
  uint32_t peak = 0;
  each([&](const Vector& v, int64_t) { peak = Peak<Element>::Larger(peak, v.PeakOf()); });
  uint32_t largest = BlockMax<kThreads>(Peak<Element>::Bits(peak));
  GroupScale made;
  uint32_t codes[kElements / 4];
  if (largest < Element::kPlainLimit) {
    made = ScaleFor(m.rule, Element::ToFloat(static_cast<typename Element::Storage>(largest)));
    const auto quotient = GroupQuotient<Element, kEncoding>::Of(made);
    each([&](const Vector& v, int64_t at) {
      EncodePlain<kEncoding>(v, quotient, codes);
      StoreWords(values + at, codes);
    });
  } else {
    peak = 0;
    each([&](const Vector& v, int64_t) { peak = Peak<Element>::Larger(peak, v.NumbersPeakOf()); });
    largest = BlockMax<kThreads>(Peak<Element>::Bits(peak));
    made = ScaleFor(m.rule, Element::ToFloat(static_cast<typename Element::Storage>(largest)));
    each([&](const Vector& v, int64_t at) {
      EncodeAny<kEncoding>(v, made, codes);
      StoreWords(values + at, codes);
    });
  }
  if (threadIdx.x < 32) StoreScaleOf(m.scales, row, group, made.scale);
}

constexpr int kAnyThreads = 256;

template <typename Element, Encoding kEncoding>
__global__ void __launch_bounds__(kAnyThreads) QuantizeAnyGroups(const __grid_constant__ Rows m) {
  StartBehindPrevious();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kAnyThreads / 32) + threadIdx.x / 32;
  const int64_t row = index / m.scales.groups;
  const int64_t group = index % m.scales.groups;
  if (row >= m.rows || FailedBefore(m.record)) return;
  const int64_t begin = group * m.group_size;
  const auto* x = static_cast<const typename Element::Storage*>(m.x) + row * m.hidden + begin;
  const float scale = QuantizeAnyGroup<kEncoding>(
      std::min(m.group_size, m.hidden - begin), m.rule, m.values + row * m.hidden + begin,
      [&](int64_t i) { return Element::ToFloat(x[i]); });
  StoreScaleOf(m.scales, row, group, scale);
}

template <typename Element, Encoding kEncoding>
void LaunchGroups(const Exec& exec, const Rows& m) {
  constexpr int kElements = kLoadElements<Element>;
  constexpr int64_t kWarps = kTileThreads / 32;
  const int64_t groups = m.rows * m.scales.groups;
  const bool vectors = Aligned16(m.x, m.values) && m.hidden % kElements == 0;
  if constexpr (kEncoding != Encoding::kDivideSaturating) {
    if (vectors && m.group_size == 128) {
      constexpr int kRows = sizeof(typename Element::Storage) == 2 ? 4 : 2;
      const int64_t column_tiles = CeilDiv(m.hidden, kTileColumns);
      const int64_t tiles = CeilDiv(m.rows, kRows) * column_tiles;
      // Few rows: more warps with less to do each.
      if (tiles < Multiprocessors(exec.device()) * 2 * kWarps) {
        const int64_t small = m.rows * column_tiles;
        LaunchBehind(exec, QuantizeTiles<Element, kEncoding, 1>, BlocksFor(small, kWarps),
                     kTileThreads, m, column_tiles, small);
      } else {
        LaunchBehind(exec, QuantizeTiles<Element, kEncoding, kRows>, BlocksFor(tiles, kWarps),
                     kTileThreads, m, column_tiles, tiles);
      }
      return;
    }
  }
  constexpr int64_t kLong = 1024;
  const int64_t longest = std::min(m.group_size, m.hidden);
  if (vectors && m.group_size % kElements == 0 && longest >= kLong) {
    // As few threads as hold the group: none of them is without work.
    const auto launch = [&]<int kThreads>() {
      LaunchBehind(exec, QuantizeLongGroups<Element, kEncoding, kThreads>, BlocksFor(groups, 1),
                   kThreads, m);
    };
    if (longest <= kLongHeld * 128 * kElements) {
      launch.template operator()<128>();
    } else {
      launch.template operator()<256>();
    }
  } else {
    LaunchBehind(exec, QuantizeAnyGroups<Element, kEncoding>, BlocksFor(groups, kAnyThreads / 32),
                 kAnyThreads, m);
  }
}

}  // namespace

void QuantizePerTokenGroup(const Exec& exec, const GroupQuantMatrix& matrix, int64_t rows,
                           ScaleRule rule) {
  const Rows m = {
      .x = matrix.elements,
      .values = matrix.values,
      .scales = {matrix.scales.data, matrix.scales.row_stride, matrix.scales.column_stride,
                 NumGroups(matrix.hidden, matrix.group_size), matrix.scales.packed},
      .rows = rows,
      .hidden = matrix.hidden,
      .group_size = matrix.group_size,
      .rule = rule,
      .record = exec.cuda_skip(),
  };
  WithElement(matrix.dtype, [&](auto element) {
    using Element = decltype(element);
    switch (EncodingOf(rule)) {
      case Encoding::kMultiply:
        return LaunchGroups<Element, Encoding::kMultiply>(exec, m);
      case Encoding::kDivideSaturating:
        return LaunchGroups<Element, Encoding::kDivideSaturating>(exec, m);
      default:  // kMaskedBF16 is for products of SiLU only
        return LaunchGroups<Element, Encoding::kDivide>(exec, m);
    }
  });
  ZeroColumnPadding(exec, matrix.scales);
}

}  // namespace moe_ep::cuda
