#include "moe_ep/quant/logfmt.cuh"

#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {
namespace {

// Where rows are whole groups, groups lie one after the other in all three tensors, and rows do not
// matter. A warp takes kTileGroups neighbours; codes go through shared memory, because a lane's 10
// bytes are no whole access.
constexpr int kThreads = 128;
constexpr int kItems = 8;
constexpr int kTileGroups = 2 * kItems;
constexpr int kTileBytes = kTileGroups * static_cast<int>(LogFmt10::kGroupBytes);
constexpr int kTileQuads = kTileBytes / 16;
constexpr int kGroupQuads = static_cast<int>(LogFmt10::kGroupBytes) / 16;

using Vector = LaneVector<BF16Element, 8>;
using Warp = WarpItems<16, kItems>;

__global__ void __launch_bounds__(kThreads)
    EncodeTiles(const uint16_t* x, uint8_t* codes, uint16_t* ranges, int64_t groups, int64_t tiles,
                const moe_ep_failure_record* record) {
  __shared__ float table[Log2Table::kEntries];
  __shared__ __align__(16) uint8_t staged[kThreads / 32][kTileBytes];
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const bool failed = Failed(record);
  const int lane = LaneOfWarp();
  const int64_t first = tile * kTileGroups;
  const uint16_t* from = x + first * LogFmt10::kGroup + lane * 8;
  const auto inside = [&](int i) { return first + 2 * i + lane / 16 < groups; };
  Vector items[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    items[i] = Vector::LoadIf(inside(i), from + i * 2 * LogFmt10::kGroup);
  }
  for (int i = threadIdx.x; i < Log2Table::kEntries; i += kThreads) table[i] = Log2Table::Entry(i);
  __syncthreads();
  if (tile >= tiles || failed) return;

  uint8_t* stage = staged[threadIdx.x / 32];
  const uint32_t range = EncodeLogItems(items, table, [&](int i, const uint32_t (&packed)[3]) {
    StoreTenBytes(stage + i * 320 + lane * 10, packed);
  });
  __syncwarp();
  auto* to = reinterpret_cast<uint4*>(codes) + first * kGroupQuads;
  const int64_t left = (groups - first) * kGroupQuads;
#pragma unroll
  for (int q = 0; q < kTileQuads; q += 32) {
    if (q + lane < kTileQuads && q + lane < left) {
      StoreOnce(to + q + lane, reinterpret_cast<const uint4*>(stage)[q + lane]);
    }
  }
  const int64_t group = first + Warp::FirstOwned(lane) * 2 + Warp::GroupOf(lane);
  if (Warp::Writes(lane) && group < groups) {
    reinterpret_cast<uint32_t*>(ranges)[group] = range;
  }
}

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    DecodeTiles(const uint8_t* codes, const uint16_t* ranges, typename Element::Storage* out,
                int64_t groups, int64_t tiles, const moe_ep_failure_record* record) {
  __shared__ __align__(16) uint8_t staged[kThreads / 32][kTileBytes];
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (tile >= tiles) return;
  const bool failed = Failed(record);
  const int lane = LaneOfWarp();
  const int64_t first = tile * kTileGroups;
  uint8_t* stage = staged[threadIdx.x / 32];
  const auto* from = reinterpret_cast<const uint4*>(codes) + first * kGroupQuads;
  const int64_t left = (groups - first) * kGroupQuads;
#pragma unroll
  for (int q = 0; q < kTileQuads; q += 32) {
    if (q + lane < kTileQuads && q + lane < left) {
      reinterpret_cast<uint4*>(stage)[q + lane] = LoadOnce(from + q + lane);
    }
  }
  // Lane by lane the scale of one group; both halves of the warp hold the same.
  const int64_t own_group = first + lane % kTileGroups;
  const auto own = LogDecoding::Of(
      own_group < groups ? reinterpret_cast<const uint32_t*>(ranges)[own_group] : 0u);
  if (failed) return;
  __syncwarp();
  const uint32_t plain_groups = __ballot_sync(kFullWarp, own.plain);
#pragma unroll 2
  for (int i = 0; i < kItems; ++i) {
    const int group = 2 * i + lane / 16;
    const LogDecoding decoding = {__shfl_sync(kFullWarp, own.low, group),
                                  __shfl_sync(kFullWarp, own.step, group),
                                  (plain_groups >> group & 1u) != 0};
    const auto* halves = reinterpret_cast<const uint16_t*>(stage + i * 320 + lane * 10);
    const uint32_t packed[3] = {halves[0] | static_cast<uint32_t>(halves[1]) << 16,
                                halves[2] | static_cast<uint32_t>(halves[3]) << 16, halves[4]};
    float values[8];
    DecodeLogItem(packed, decoding, values);
    if (first + group < groups) {
      LaneVector<Element, 8>::OfFloats(values).Store(out + (first + 2 * i) * LogFmt10::kGroup +
                                                     lane * 8);
    }
  }
}

// Of a group that begins so many elements before the end of its row.
__device__ __forceinline__ int64_t GroupElements(int64_t left) {
  constexpr int64_t kGroup = LogFmt10::kGroup;
  return left < kGroup ? left : kGroup;
}

// Rows with a short last group, or without the alignment for vectors: a thread for each group.
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

bool WholeGroups(const LogFmtMatrix& m) {
  return m.hidden % LogFmt10::kGroup == 0 && Aligned16(m.elements, m.codes, m.ranges);
}

}  // namespace

void QuantizeLogFmt10(const Exec& exec, const LogFmtMatrix& m, int64_t rows) {
  const auto* x = static_cast<const uint16_t*>(m.elements);
  const int64_t row_groups = NumGroups(m.hidden, LogFmt10::kGroup);
  const int64_t groups = rows * row_groups;
  if (WholeGroups(m)) {
    const int64_t tiles = CeilDiv(groups, kTileGroups);
    Launch(EncodeTiles, {BlocksFor(tiles, kThreads / 32), kThreads}, exec.cuda_stream(), x, m.codes,
           m.ranges, groups, tiles, exec.cuda_skip());
  } else {
    Launch(EncodeGroups, {BlocksFor(groups, kThreads), kThreads}, exec.cuda_stream(), x, m.codes,
           m.ranges, m.hidden, row_groups, groups, exec.cuda_skip());
  }
}

void DequantizeLogFmt10(const Exec& exec, const LogFmtMatrix& m, int64_t rows) {
  const int64_t row_groups = NumGroups(m.hidden, LogFmt10::kGroup);
  const int64_t groups = rows * row_groups;
  WithElement(m.dtype, [&](auto element) {
    using Element = decltype(element);
    auto* out = static_cast<typename Element::Storage*>(m.elements);
    if (WholeGroups(m)) {
      const int64_t tiles = CeilDiv(groups, kTileGroups);
      Launch(DecodeTiles<Element>, {BlocksFor(tiles, kThreads / 32), kThreads}, exec.cuda_stream(),
             m.codes, m.ranges, out, groups, tiles, exec.cuda_skip());
    } else {
      Launch(DecodeGroups<Element>, {BlocksFor(groups, kThreads), kThreads}, exec.cuda_stream(),
             m.codes, m.ranges, out, m.hidden, row_groups, groups, exec.cuda_skip());
    }
  });
}

}  // namespace moe_ep::cuda
