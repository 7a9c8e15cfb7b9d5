#include "moe_ep/quant/logfmt.cuh"

#include <cstdint>
#include <type_traits>

#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {
namespace {

// A warp takes kTileGroups neighbours of all rows' groups; codes go through shared memory, because
// a lane's 10 bytes are no whole access.
constexpr int kThreads = 128;
constexpr int kItems = 8;
constexpr int kTileGroups = 2 * kItems;
constexpr int kGroupBytes = static_cast<int>(LogFmt10::kGroupBytes);
constexpr int kTileBytes = kTileGroups * kGroupBytes;
constexpr int kVectorBytes = 10;

using Vector = LaneVector<BF16Element, 8>;
using Warp = WarpItems<16, kItems>;

struct Rows {
  int64_t hidden;
  int64_t row_groups;
  int64_t groups;  // of all rows
};

// A group's first element and byte of codes, and how many elements it has: none behind the last.
struct GroupAt {
  int64_t element;
  int64_t byte;
  int elements;
};

// Groups of a warp's tile. Where rows are whole groups, these lie one after the other, and rows do
// not matter; else the last group of each row is a short one, of whole vectors.
template <bool kWhole>
class Tile {
 public:
  __device__ __forceinline__ Tile(const Rows& rows, int64_t tile)
      : rows_(rows), first_(tile * kTileGroups) {
    if constexpr (!kWhole) {
      row_ = first_ / rows.row_groups;
      group_ = static_cast<uint32_t>(first_ - row_ * rows.row_groups);
    }
  }

  __device__ __forceinline__ int64_t first() const { return first_; }
  __device__ __forceinline__ GroupAt At(int index) const {
    constexpr int kGroup = static_cast<int>(LogFmt10::kGroup);
    const int64_t group = first_ + index;
    const bool real = group < rows_.groups;
    if constexpr (kWhole) {
      return {group * kGroup, group * kGroupBytes, real ? kGroup : 0};
    } else {
      const auto row_groups = static_cast<uint32_t>(rows_.row_groups);
      const uint32_t from_row = group_ + index;
      const uint32_t rows = from_row / row_groups;
      const int64_t row = row_ + rows;
      const int64_t begin = int64_t{from_row - rows * row_groups} * kGroup;
      const int64_t left = rows_.hidden - begin;
      return {row * rows_.hidden + begin,
              row * LogFmt10::RowBytes(rows_.hidden) + begin / 8 * kVectorBytes,
              real ? static_cast<int>(left < kGroup ? left : kGroup) : 0};
    }
  }

  // Calls body(place in the tile's bytes, place in all bytes) for the units of codes that a lane
  // copies.
  template <typename Unit, typename Body>
  __device__ __forceinline__ void ForEachUnit(int lane, const Body& body) const {
    constexpr int kSize = static_cast<int>(sizeof(Unit));
    constexpr int kGroupUnits = kGroupBytes / kSize;
    constexpr int kUnits = kTileGroups * kGroupUnits;
#pragma unroll(kSize == 16 ? kUnits / 32 : 1)
    for (int q = 0; q < kUnits; q += 32) {
      const int unit = q + lane;
      if constexpr (kWhole) {
        if (unit < (rows_.groups - first_) * kGroupUnits) {
          body(unit * kSize, first_ * kGroupBytes + unit * kSize);
        }
      } else {
        const int index = unit / kGroupUnits;
        const int byte = (unit - index * kGroupUnits) * kSize;
        const GroupAt at = At(index);
        if (byte < at.elements / 8 * kVectorBytes) body(unit * kSize, at.byte + byte);
      }
    }
  }

 private:
  const Rows& rows_;
  int64_t first_;
  int64_t row_ = 0;     // of the first group
  uint32_t group_ = 0;  // of its row
};

template <typename Unit, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    EncodeTiles(const uint16_t* x, uint8_t* codes, uint16_t* ranges,
                const __grid_constant__ Rows rows, int64_t tiles,
                const moe_ep_failure_record* record) {
  __shared__ float table[Log2Table::kEntries];
  __shared__ __align__(16) uint8_t staged[kThreads / 32][kTileBytes];
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const bool failed = Failed(record);
  const int lane = LaneOfWarp();
  const Tile<kWhole> tile(rows, number);
  Vector items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const GroupAt at = tile.At(2 * i + lane / 16);
    const int begin = lane % 16 * 8;
    items[i] = Vector::LoadIf(begin < at.elements, x + at.element + begin);
  }
  for (int i = threadIdx.x; i < Log2Table::kEntries; i += kThreads) table[i] = Log2Table::Entry(i);
  __syncthreads();
  if (number >= tiles || failed) return;

  uint8_t* stage = staged[threadIdx.x / 32];
  const uint32_t range = EncodeLogItems(items, table, [&](int i, const uint32_t (&packed)[3]) {
    StoreTenBytes(stage + i * 320 + lane * 10, packed);
  });
  __syncwarp();
  tile.template ForEachUnit<Unit>(lane, [&](int from, int64_t to) {
    const Unit unit = *reinterpret_cast<const Unit*>(stage + from);
    if constexpr (sizeof(Unit) == 16) {
      StoreOnce(reinterpret_cast<Unit*>(codes + to), unit);
    } else {
      *reinterpret_cast<Unit*>(codes + to) = unit;
    }
  });
  const int64_t group = tile.first() + Warp::FirstOwned(lane) * 2 + Warp::GroupOf(lane);
  if (Warp::Writes(lane) && group < rows.groups) {
    reinterpret_cast<uint32_t*>(ranges)[group] = range;
  }
}

template <typename Element, typename Unit, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    DecodeTiles(const uint8_t* codes, const uint16_t* ranges, typename Element::Storage* out,
                const __grid_constant__ Rows rows, int64_t tiles,
                const moe_ep_failure_record* record) {
  __shared__ __align__(16) uint8_t staged[kThreads / 32][kTileBytes];
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (number >= tiles) return;
  const bool failed = Failed(record);
  const int lane = LaneOfWarp();
  const Tile<kWhole> tile(rows, number);
  uint8_t* stage = staged[threadIdx.x / 32];
  tile.template ForEachUnit<Unit>(lane, [&](int to, int64_t from) {
    if constexpr (sizeof(Unit) == 16) {
      *reinterpret_cast<Unit*>(stage + to) = LoadOnce(reinterpret_cast<const Unit*>(codes + from));
    } else {
      *reinterpret_cast<Unit*>(stage + to) = *reinterpret_cast<const Unit*>(codes + from);
    }
  });
  // Lane by lane the scale of one group; both halves of the warp hold the same.
  const int64_t own_group = tile.first() + lane % kTileGroups;
  const auto own = LogDecoding::Of(
      own_group < rows.groups ? reinterpret_cast<const uint32_t*>(ranges)[own_group] : 0u);
  if (failed) return;
  __syncwarp();
  const uint32_t plain_groups = __ballot_sync(kFullWarp, own.plain);
#pragma unroll 2
  for (int i = 0; i < kItems; ++i) {
    const int group = 2 * i + lane / 16;
    const LogDecoding decoding = {__shfl_sync(kFullWarp, own.low, group),
                                  __shfl_sync(kFullWarp, own.step, group),
                                  (plain_groups >> group & 1u) != 0};
    const GroupAt at = tile.At(group);
    const int begin = lane % 16 * 8;
    if (begin >= at.elements) continue;
    const auto* halves = reinterpret_cast<const uint16_t*>(stage + i * 320 + lane * 10);
    const uint32_t packed[3] = {halves[0] | static_cast<uint32_t>(halves[1]) << 16,
                                halves[2] | static_cast<uint32_t>(halves[3]) << 16, halves[4]};
    float values[8];
    DecodeLogItem(packed, decoding, values);
    LaneVector<Element, 8>::OfFloats(values).Store(out + at.element + begin);
  }
}

// Of a group that begins so many elements before the end of its row.
__device__ __forceinline__ int64_t GroupElements(int64_t left) {
  constexpr int64_t kGroup = LogFmt10::kGroup;
  return left < kGroup ? left : kGroup;
}

// Rows without the alignment for vectors: a thread for each group.
__global__ void __launch_bounds__(kThreads)
    EncodeGroups(const uint16_t* x, uint8_t* codes, uint16_t* ranges, int64_t hidden,
                 int64_t row_groups, int64_t count, const moe_ep_failure_record* record) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count || Failed(record)) return;
  const int64_t row = index / row_groups;
  const int64_t group = index % row_groups;
  const int64_t begin = group * LogFmt10::kGroup;
  moe_ep::detail::EncodeLogGroup(
      x + row * hidden + begin, GroupElements(hidden - begin),
      codes + row * LogFmt10::RowBytes(hidden) + group * LogFmt10::kGroupBytes, ranges + 2 * index);
}

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    DecodeGroups(const uint8_t* codes, const uint16_t* ranges, typename Element::Storage* out,
                 int64_t hidden, int64_t row_groups, int64_t count,
                 const moe_ep_failure_record* record) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count || Failed(record)) return;
  const int64_t row = index / row_groups;
  const int64_t group = index % row_groups;
  const int64_t begin = group * LogFmt10::kGroup;
  moe_ep::detail::DecodeLogGroup<Element>(
      codes + row * LogFmt10::RowBytes(hidden) + group * LogFmt10::kGroupBytes, ranges + 2 * index,
      GroupElements(hidden - begin), out + row * hidden + begin);
}

// Calls body(Unit(), whole) with what tiles of these rows are made of, or says that there are none.
template <typename Body>
bool WithTiles(const LogFmtMatrix& m, const Body& body) {
  if (m.hidden % 8 != 0 || !Aligned16(m.elements, m.codes, m.ranges)) return false;
  if (m.hidden % LogFmt10::kGroup == 0) {
    body(uint4(), std::true_type());
  } else if (m.hidden % 64 == 0) {  // rows of codes are whole units
    body(uint4(), std::false_type());
  } else {
    body(uint16_t(), std::false_type());
  }
  return true;
}

Rows RowsOf(const LogFmtMatrix& m, int64_t rows) {
  const int64_t row_groups = NumGroups(m.hidden, LogFmt10::kGroup);
  return {m.hidden, row_groups, rows * row_groups};
}

}  // namespace

void QuantizeLogFmt10(const Exec& exec, const LogFmtMatrix& m, int64_t num_rows) {
  const auto* x = static_cast<const uint16_t*>(m.elements);
  const Rows rows = RowsOf(m, num_rows);
  const int64_t tiles = CeilDiv(rows.groups, kTileGroups);
  const bool tiled = WithTiles(m, [&](auto unit, auto whole) {
    Launch(EncodeTiles<decltype(unit), decltype(whole)::value>,
           {BlocksFor(tiles, kThreads / 32), kThreads}, exec.cuda_stream(), x, m.codes, m.ranges,
           rows, tiles, exec.cuda_skip());
  });
  if (tiled) return;
  Launch(EncodeGroups, {BlocksFor(rows.groups, kThreads), kThreads}, exec.cuda_stream(), x, m.codes,
         m.ranges, m.hidden, rows.row_groups, rows.groups, exec.cuda_skip());
}

void DequantizeLogFmt10(const Exec& exec, const LogFmtMatrix& m, int64_t num_rows) {
  const Rows rows = RowsOf(m, num_rows);
  const int64_t tiles = CeilDiv(rows.groups, kTileGroups);
  WithElement(m.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* out = static_cast<typename Element::Storage*>(m.elements);
    const bool tiled = WithTiles(m, [&](auto unit, auto whole) {
      Launch(DecodeTiles<Element, decltype(unit), decltype(whole)::value>,
             {BlocksFor(tiles, kThreads / 32), kThreads}, exec.cuda_stream(), m.codes, m.ranges,
             out, rows, tiles, exec.cuda_skip());
    });
    if (tiled) return;
    Launch(DecodeGroups<Element>, {BlocksFor(rows.groups, kThreads), kThreads}, exec.cuda_stream(),
           m.codes, m.ranges, out, m.hidden, rows.row_groups, rows.groups, exec.cuda_skip());
  });
}

}  // namespace moe_ep::cuda
