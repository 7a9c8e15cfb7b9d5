#include <algorithm>
#include <type_traits>

#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/small_groups.cuh"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {
namespace {

// Where scales go. Swizzled, places that no group has are zeroed too.
struct CodeScales {
  uint8_t* data;
  int64_t groups;      // of a row
  int64_t row_scales;  // swizzled: groups, padded to a multiple of 4
  bool swizzled;

  __device__ __forceinline__ uint8_t* At(int64_t row, int64_t group) const {
    return data +
           (swizzled ? SwizzledScaleIndex(row, group, row_scales) : row * row_scales + group);
  }
};

struct Small {
  const void* x;
  uint8_t* values;
  CodeScales scales;
  int64_t rows;
  int64_t hidden;
  const moe_ep_failure_record* record;
};

// Makes the scales' rule on the device: NVFP4's needs a number that lies in device memory.
template <typename Codes>
struct MxRule {
  using Scales = MxScales<Codes>;
  MxScaleRule rule;
  __device__ __forceinline__ Scales Make() const { return {rule}; }
};
struct Nvfp4Rule {
  using Scales = HardwareNvfp4Scales;
  const float* global;
  __device__ __forceinline__ Scales Make() const { return Scales::Of(*global); }
};

constexpr int kThreads = 128;

// Of the rows that a warp takes.
template <typename Element>
constexpr int kTileColumns = 2 * 32 * kLoadElements<Element>;

// As far as a tile reaches.
__device__ __forceinline__ int LeftOf(int64_t count) {
  return static_cast<int>(std::min<int64_t>(count, 1 << 30));
}

// Rows of whole vectors: a warp takes four rows of kTileColumns elements. With swizzled scales its
// rows are 32 apart, whose scales are neighbours.
template <typename Element, typename Codes, typename Rule>
__global__ void __launch_bounds__(kThreads)
    QuantizeSmallTiles(const __grid_constant__ Small m, Rule rule, uint32_t column_tiles,
                       uint32_t tiles) {
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kColumns = kTileColumns<Element>;
  constexpr int kVectors = kColumns / (32 * kElements);
  constexpr int kRows = 4;
  constexpr int kItems = kRows * kVectors;
  constexpr int kGroup = Rule::Scales::kGroup;
  constexpr int kWords = kCodeWords<Codes, kElements>;
  using Vector = LaneVector<Element, kElements>;
  using Warp = WarpItems<kGroup / kElements, kItems>;
  using Words = uint32_t[kWords];
  StartBehindPrevious();
  const uint32_t tile = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const bool failed = FailedBefore(m.record);
  const int lane = LaneOfWarp();
  const bool swizzled = m.scales.swizzled;
  const uint32_t strip = tile / column_tiles;
  const uint32_t column_tile = tile % column_tiles;
  const int64_t first_row =
      swizzled ? strip / 32 * int64_t{128} + strip % 32 : strip * int64_t{kRows};
  const int step = swizzled ? 32 : 1;
  const int64_t column = column_tile * int64_t{kColumns} + lane * kElements;
  // What is left from there on, as far as it matters.
  const int rows_left = LeftOf(m.rows - first_row);
  const int columns_left = LeftOf(m.hidden - column);
  const auto inside = [&](int i) {
    return i / kVectors * step < rows_left && i % kVectors * 32 * kElements < columns_left;
  };
  const int64_t first = first_row * m.hidden + column;
  const int64_t row_step = step * m.hidden;
  const auto offset = [&](int i) {
    return i / kVectors * row_step + i % kVectors * 32 * kElements;
  };
  const auto* x = static_cast<const typename Element::Storage*>(m.x) + first;
  Vector items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) items[i] = Vector::LoadIf(inside(i), x + offset(i));
  const auto scales = rule.Make();
  if (failed) return;

  uint8_t* const values = m.values + first / Codes::kPerByte;
  SmallGroupScale made[Warp::kOwned];
  QuantizeSmallItems<Codes>(items, scales, made, [&](int i, const Words& codes) {
    if (!inside(i)) return;
    uint8_t* to = values + offset(i) / Codes::kPerByte;
    if constexpr (kElements / Codes::kPerByte == 2) {
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(codes[0]);
    } else {
      StoreWords(to, codes);
    }
  });
  if (!Warp::Writes(lane)) return;
  constexpr int kVectorGroups = 32 * kElements / kGroup;
  const int64_t first_group = column_tile * int64_t{kColumns / kGroup} + Warp::GroupOf(lane);
  const int groups_left = LeftOf(m.scales.groups - first_group);
  const int scales_left = LeftOf(m.scales.row_scales - first_group);
  uint8_t* const first_scale = m.scales.At(first_row, first_group);
  const int64_t row_scale_step = swizzled ? 4 : m.scales.row_scales;
  const int vector_scale_step = swizzled ? kVectorGroups / 4 * 512 : kVectorGroups;
#pragma unroll
  for (int s = 0; s < Warp::kOwned; ++s) {
    const int item = Warp::FirstOwned(lane) + s;
    const int row = item / kVectors;
    const int vector = item % kVectors;
    const bool real = row * step < rows_left && vector * kVectorGroups < groups_left;
    if (real || (swizzled && vector * kVectorGroups < scales_left)) {
      first_scale[row * row_scale_step + vector * vector_scale_step] =
          real ? made[s].code : uint8_t{0};
    }
  }
}

// A thread for each group, for rows without the alignment for vectors. Counts the rows and groups
// that scales have room for.
template <typename Element, typename Codes, typename Rule>
__global__ void __launch_bounds__(kThreads)
    QuantizeSmallElements(const __grid_constant__ Small m, Rule rule, int64_t groups,
                          int64_t count) {
  constexpr int kGroup = Rule::Scales::kGroup;
  StartBehindPrevious();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count || FailedBefore(m.record)) return;
  const int64_t row = index / groups;
  const int64_t group = index % groups;
  uint8_t code = 0;
  if (row < m.rows && group < m.scales.groups) {
    const int64_t begin = row * m.hidden + group * kGroup;
    const int size = static_cast<int>(std::min<int64_t>(kGroup, m.hidden - group * kGroup));
    const auto* x = static_cast<const typename Element::Storage*>(m.x) + begin;
    const auto made = rule.Make()(moe_ep::detail::SmallGroupAmax<Element, Codes>(x, size));
    code = made.code;
    uint8_t* values = m.values + begin / Codes::kPerByte;
    for (int i = 0; i < size; i += Codes::kPerByte) {
      uint8_t byte = Codes::Encode(Element::LaneToFloat(x[i]) * made.factor);
      if constexpr (Codes::kPerByte == 2) {
        byte |= Codes::Encode(Element::LaneToFloat(x[i + 1]) * made.factor) << 4;
      }
      values[i / Codes::kPerByte] = byte;
    }
  }
  *m.scales.At(row, group) = code;
}

template <typename Codes, typename Rule>
void Quantize(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows, int64_t scale_rows,
              Rule rule) {
  const int64_t groups = NumGroups(matrix.hidden, Rule::Scales::kGroup);
  const Small m = {
      .x = matrix.elements,
      .values = matrix.values,
      .scales = {matrix.scales, groups, matrix.row_scales, matrix.swizzled},
      .rows = rows,
      .hidden = matrix.hidden,
      .record = exec.cuda_skip(),
  };
  WithElement(matrix.dtype, [&](auto element) {
    using Element = decltype(element);
    if (Aligned16(m.x, m.values) && m.hidden % kLoadElements<Element> == 0) {
      const int64_t column_tiles = CeilDiv(m.hidden, kTileColumns<Element>);
      const int64_t tiles = CeilDiv(scale_rows, 4) * column_tiles;
      LaunchBehind(exec, QuantizeSmallTiles<Element, Codes, Rule>, BlocksFor(tiles, kThreads / 32),
                   kThreads, m, rule, static_cast<uint32_t>(column_tiles),
                   static_cast<uint32_t>(tiles));
    } else {
      const int64_t across = matrix.swizzled ? matrix.row_scales : groups;
      const int64_t count = scale_rows * across;
      LaunchBehind(exec, QuantizeSmallElements<Element, Codes, Rule>, BlocksFor(count, kThreads),
                   kThreads, m, rule, across, count);
    }
  });
}

}  // namespace

void QuantizeMx(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows, MxScaleRule rule) {
  if (matrix.code_dtype == DType::kFp8E4M3) {
    Quantize<E4M3Codes>(exec, matrix, rows, rows, MxRule<E4M3Codes>{rule});
  } else {
    Quantize<E2M1Codes>(exec, matrix, rows, rows, MxRule<E2M1Codes>{rule});
  }
}

void QuantizeNvfp4(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows,
                   const float* global) {
  const int64_t scale_rows = matrix.swizzled ? CeilDiv(rows, 128) * 128 : rows;
  Quantize<E2M1Codes>(exec, matrix, rows, scale_rows, Nvfp4Rule{global});
}

}  // namespace moe_ep::cuda
