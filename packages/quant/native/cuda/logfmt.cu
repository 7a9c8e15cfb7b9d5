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
constexpr int kGroup = static_cast<int>(LogFmt10::kGroup);
constexpr int kGroupBytes = static_cast<int>(LogFmt10::kGroupBytes);
constexpr int kTileBytes = kTileGroups * kGroupBytes;

using Vector = LaneVector<BF16Element, 8>;
using Warp = WarpItems<16, kItems>;

// Of whole vectors.
template <typename Int>
__device__ __forceinline__ Int BytesOf(Int elements) {
  return elements / 8 * 10;
}

struct Rows {
  int64_t row_groups;
  int64_t groups;   // of all rows
  int32_t missing;  // elements of a row's last group, to a whole one
};

// How many rows may end with a short group in a warp's tile.
enum class ShortGroups { kNone, kOne, kMany };

// The groups of a warp's tile. Elements lie one after the other, and so do their bytes of codes.
// Where rows are not whole groups, the last one of each is a short one, of whole vectors.
template <ShortGroups kShort>
class Tile {
 public:
  // All lanes of the warp make it together.
  __device__ __forceinline__ Tile(const Rows& rows, int64_t tile)
      : first_(tile * kTileGroups), element_(first_ * kGroup) {
    const int64_t left = rows.groups - first_;
    groups_ = left < 0 ? 0 : left < kTileGroups ? static_cast<int>(left) : kTileGroups;
    if constexpr (kShort != ShortGroups::kNone) {
      const auto row_groups = static_cast<uint32_t>(rows.row_groups);
      // A division of 64 bits takes long.
      const int64_t row = rows.groups >> 32 == 0 ? static_cast<uint32_t>(first_) / row_groups
                                                 : first_ / rows.row_groups;
      const auto group = static_cast<uint32_t>(first_ - row * rows.row_groups);
      missing_ = rows.missing;
      element_ -= row * missing_;
      const bool behind = LaneOfWarp() % 16 * 8 >= kGroup - missing_;
      if constexpr (kShort == ShortGroups::kOne) {
        short_ = min(row_groups - 1 - group, static_cast<uint32_t>(kTileGroups));
        left_out_ = behind ? short_ : kTileGroups;
      } else {
        short_ = __ballot_sync(kFullWarp, (group + LaneOfWarp() + 1) % row_groups == 0);
        left_out_ = behind ? short_ : 0;
      }
    }
  }

  __device__ __forceinline__ int64_t first_group() const { return first_; }
  __device__ __forceinline__ int64_t first_element() const { return element_; }

  // Of a group, less those of the first one.
  __device__ __forceinline__ int FirstElement(int group) const {
    int rows = 0;  // that end before it
    if constexpr (kShort == ShortGroups::kOne) rows = static_cast<uint32_t>(group) > short_;
    if constexpr (kShort == ShortGroups::kMany) rows = __popc(short_ & ((1u << group) - 1u));
    return group * kGroup - rows * missing_;
  }
  // Whether there are the elements of a group that this lane, one of 16, would have.
  __device__ __forceinline__ bool Has(int group) const {
    bool left_out = false;
    if constexpr (kShort == ShortGroups::kOne) left_out = static_cast<uint32_t>(group) == left_out_;
    if constexpr (kShort == ShortGroups::kMany) left_out = (left_out_ >> group & 1u) != 0;
    return group < groups_ && !left_out;
  }

  // Where a group's codes wait in shared memory. A single short one has a gap behind it, so that
  // the others' places are the same for all tiles.
  __device__ __forceinline__ int Staged(int group) const {
    return kShort == ShortGroups::kMany ? BytesOf(FirstElement(group)) : group * kGroupBytes;
  }
  // Calls body(where it waits, its place behind the tile's first byte) for the units of codes that
  // a lane copies.
  template <typename Unit, typename Body>
  __device__ __forceinline__ void ForEachUnit(const Body& body) const {
    constexpr int kSize = static_cast<int>(sizeof(Unit));
    const int own = LaneOfWarp() * kSize;
    const int end = Staged(groups_);
    const int missing = BytesOf(missing_);
    const int gap_end = (static_cast<int>(short_) + 1) * kGroupBytes;
#pragma unroll(kSize == 16 ? kTileBytes / (32 * kSize) : 1)
    for (int q = 0; q < kTileBytes; q += 32 * kSize) {
      const int staged = own + q;
      bool gap = false;
      bool past_gap = false;
      if constexpr (kShort == ShortGroups::kOne) {
        past_gap = staged >= gap_end;
        gap = !past_gap && staged >= gap_end - missing;
      }
      if (staged < end && !gap) body(staged, staged - (past_gap ? missing : 0));
    }
  }

 private:
  int64_t first_;
  int64_t element_;
  int groups_;
  int missing_ = 0;
  // The group that ends a row, kTileGroups where none does, or a bit for each that does.
  uint32_t short_ = 0;
  uint32_t left_out_ = 0;  // the same of those that end before the lane's elements
};

// With registers for nine blocks of a multiprocessor little of it is spilled, and with ten much.
template <typename Unit, ShortGroups kShort>
__global__ void __launch_bounds__(kThreads, 9)
    EncodeTiles(const uint16_t* x, uint8_t* codes, uint16_t* ranges,
                const __grid_constant__ Rows rows, int64_t tiles,
                const moe_ep_failure_record* record) {
  __shared__ float table[Log2Table::kEntries];
  __shared__ __align__(16) uint8_t staged[kThreads / 32][kTileBytes];
  StartBehindPrevious();
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const bool failed = FailedBefore(record);
  const int lane = LaneOfWarp();
  const Tile<kShort> tile(rows, number);
  const int begin = lane % 16 * 8;
  const uint16_t* own = x + tile.first_element() + begin;
  Vector items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int group = 2 * i + lane / 16;
    items[i] = Vector::LoadIf(tile.Has(group), own + tile.FirstElement(group));
  }
  static_assert(kThreads == Log2Table::kEntries);
  table[threadIdx.x] = Log2Table::Entry(threadIdx.x);
  __syncthreads();
  if (number >= tiles || failed) return;

  uint8_t* stage = staged[threadIdx.x / 32];
  const uint32_t range = EncodeLogItems(items, table, [&](int i, const uint32_t (&packed)[3]) {
    const int group = 2 * i + lane / 16;
    // What a lane writes into the gap is never read.
    if (kShort != ShortGroups::kMany || tile.Has(group))
      StoreTenBytes(stage + tile.Staged(group) + lane % 16 * 10, packed);
  });
  __syncwarp();
  codes += BytesOf(tile.first_element());
  tile.template ForEachUnit<Unit>([&](int from, int to) {
    const Unit unit = *reinterpret_cast<const Unit*>(stage + from);
    if constexpr (sizeof(Unit) == 16) {
      StoreOnce(reinterpret_cast<Unit*>(codes + to), unit);
    } else {
      *reinterpret_cast<Unit*>(codes + to) = unit;
    }
  });
  const int64_t group = tile.first_group() + Warp::FirstOwned(lane) * 2 + Warp::GroupOf(lane);
  if (Warp::Writes(lane) && group < rows.groups) {
    reinterpret_cast<uint32_t*>(ranges)[group] = range;
  }
}

template <typename Element, typename Unit, ShortGroups kShort>
__global__ void __launch_bounds__(kThreads)
    DecodeTiles(const uint8_t* codes, const uint16_t* ranges, typename Element::Storage* out,
                const __grid_constant__ Rows rows, int64_t tiles,
                const moe_ep_failure_record* record) {
  StartBehindPrevious();
  __shared__ __align__(16) uint8_t staged[kThreads / 32][kTileBytes];
  const int64_t number = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (number >= tiles) return;
  const bool failed = FailedBefore(record);
  const int lane = LaneOfWarp();
  const Tile<kShort> tile(rows, number);
  uint8_t* stage = staged[threadIdx.x / 32];
  codes += BytesOf(tile.first_element());
  tile.template ForEachUnit<Unit>([&](int to, int from) {
    if constexpr (sizeof(Unit) == 16) {
      *reinterpret_cast<Unit*>(stage + to) = LoadOnce(reinterpret_cast<const Unit*>(codes + from));
    } else {
      *reinterpret_cast<Unit*>(stage + to) = *reinterpret_cast<const Unit*>(codes + from);
    }
  });
  // Lane by lane the scale of one group, with both halves of the warp: each has one logarithm.
  const int64_t own_group = tile.first_group() + lane % kTileGroups;
  const bool upper = lane >= kTileGroups;
  const float mine = Log2(
      BF16ToFloat(own_group < rows.groups ? ranges[2 * own_group + (upper ? 1 : 0)] : uint16_t{0}));
  const float other = __shfl_xor_sync(kFullWarp, mine, kTileGroups);
  const auto own = LogDecoding::Between(upper ? other : mine, upper ? mine : other);
  if (failed) return;
  __syncwarp();
  const uint32_t plain_groups = __ballot_sync(kFullWarp, own.plain);
  const int begin = lane % 16 * 8;
  out += tile.first_element() + begin;
#pragma unroll 2
  for (int i = 0; i < kItems; ++i) {
    const int group = 2 * i + lane / 16;
    const LogDecoding decoding = {__shfl_sync(kFullWarp, own.low, group),
                                  __shfl_sync(kFullWarp, own.step, group),
                                  (plain_groups >> group & 1u) != 0};
    if (!tile.Has(group)) continue;
    const auto* halves =
        reinterpret_cast<const uint16_t*>(stage + tile.Staged(group) + lane % 16 * 10);
    const uint32_t packed[3] = {halves[0] | static_cast<uint32_t>(halves[1]) << 16,
                                halves[2] | static_cast<uint32_t>(halves[3]) << 16, halves[4]};
    if constexpr (std::is_same_v<Element, BF16Element>) {
      DecodeLogItemToBF16(packed, decoding).Store(out + tile.FirstElement(group));
    } else {
      float values[8];
      DecodeLogItem(packed, decoding, values);
      LaneVector<Element, 8>::OfFloats(values).Store(out + tile.FirstElement(group));
    }
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
  StartBehindPrevious();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count || FailedBefore(record)) return;
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
  StartBehindPrevious();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= count || FailedBefore(record)) return;
  const int64_t row = index / row_groups;
  const int64_t group = index % row_groups;
  const int64_t begin = group * LogFmt10::kGroup;
  moe_ep::detail::DecodeLogGroup<Element>(
      codes + row * LogFmt10::RowBytes(hidden) + group * LogFmt10::kGroupBytes, ranges + 2 * index,
      GroupElements(hidden - begin), out + row * hidden + begin);
}

template <ShortGroups kShort>
using Constant = std::integral_constant<ShortGroups, kShort>;

// Calls body(Unit(), short groups) with what tiles of these rows are made of, or says that there
// are none.
template <typename Body>
bool WithTiles(const LogFmtMatrix& m, const Body& body) {
  if (m.hidden % 8 != 0 || !Aligned16(m.elements, m.codes, m.ranges)) return false;
  using enum ShortGroups;
  if (m.hidden % LogFmt10::kGroup == 0) {
    body(uint4(), Constant<kNone>());
  } else if (m.hidden % 64 != 0) {  // rows of codes are no whole units
    body(uint16_t(), Constant<kMany>());
  } else if (m.hidden > (kTileGroups - 1) * LogFmt10::kGroup) {
    body(uint4(), Constant<kOne>());
  } else {
    body(uint4(), Constant<kMany>());
  }
  return true;
}

Rows RowsOf(const LogFmtMatrix& m, int64_t rows) {
  const int64_t row_groups = NumGroups(m.hidden, LogFmt10::kGroup);
  return {row_groups, rows * row_groups,
          static_cast<int32_t>(row_groups * LogFmt10::kGroup - m.hidden)};
}

}  // namespace

void QuantizeLogFmt10(const Exec& exec, const LogFmtMatrix& m, int64_t num_rows) {
  const auto* x = static_cast<const uint16_t*>(m.elements);
  const Rows rows = RowsOf(m, num_rows);
  const int64_t tiles = CeilDiv(rows.groups, kTileGroups);
  const bool tiled = WithTiles(m, [&](auto unit, auto short_groups) {
    LaunchBehind(exec, EncodeTiles<decltype(unit), decltype(short_groups)::value>,
                 BlocksFor(tiles, kThreads / 32), kThreads, x, m.codes, m.ranges, rows, tiles,
                 exec.cuda_skip());
  });
  if (tiled) return;
  LaunchBehind(exec, EncodeGroups, BlocksFor(rows.groups, kThreads), kThreads, x, m.codes, m.ranges,
               m.hidden, rows.row_groups, rows.groups, exec.cuda_skip());
}

void DequantizeLogFmt10(const Exec& exec, const LogFmtMatrix& m, int64_t num_rows) {
  const Rows rows = RowsOf(m, num_rows);
  const int64_t tiles = CeilDiv(rows.groups, kTileGroups);
  WithElement(m.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* out = static_cast<typename Element::Storage*>(m.elements);
    const bool tiled = WithTiles(m, [&](auto unit, auto short_groups) {
      LaunchBehind(exec, DecodeTiles<Element, decltype(unit), decltype(short_groups)::value>,
                   BlocksFor(tiles, kThreads / 32), kThreads, m.codes, m.ranges, out, rows, tiles,
                   exec.cuda_skip());
    });
    if (tiled) return;
    LaunchBehind(exec, DecodeGroups<Element>, BlocksFor(rows.groups, kThreads), kThreads, m.codes,
                 m.ranges, out, m.hidden, rows.row_groups, rows.groups, exec.cuda_skip());
  });
}

}  // namespace moe_ep::cuda
