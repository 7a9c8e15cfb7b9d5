#include "moe_ep/quant/block_quant.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/block_max.cuh"
#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/group_quant.cuh"

namespace moe_ep::cuda {
namespace {

constexpr int kThreads = 256;

struct Blocks {
  BlockQuantMatrices matrices;
  uint32_t across;
  uint32_t down;
  bool power_of_two;
  const moe_ep_failure_record* record;
};

// The places of a thread in a block of `width` vectors or elements a row, of which it takes every
// kThreads-th: steps, without divisions. Vectors of a row are counted in 32 bits: a fifth
// fewer instructions of the whole kernel.
template <int kCount>
class Walk {
 public:
  using Column = std::conditional_t<(kCount > 1), uint32_t, int64_t>;

  __device__ __forceinline__ Walk(int64_t width, int64_t columns)
      : width_(static_cast<Column>(width)), wrap_(columns - width * kCount) {
    const uint32_t narrow = static_cast<uint32_t>(std::min<int64_t>(width, kThreads + 1));
    const uint32_t row = threadIdx.x / narrow;
    column_ = threadIdx.x - row * narrow;
    offset_ = row * columns + static_cast<int64_t>(column_) * kCount;
    const uint32_t step_rows = kThreads / narrow;
    step_columns_ = kThreads - step_rows * narrow;
    step_ = step_rows * columns + step_columns_ * kCount;
  }

  __device__ __forceinline__ int64_t offset() const { return offset_; }
  __device__ __forceinline__ void Next() {
    column_ += step_columns_;
    offset_ += step_;
    if (column_ >= width_) {
      column_ -= width_;
      offset_ += wrap_;
    }
  }

 private:
  Column width_;
  int64_t wrap_;  // from behind a row to the next
  Column column_;
  int64_t offset_;
  Column step_columns_;
  int64_t step_;
};

// A block of threads takes a block of the matrix. kCount neighbours of a row are read at once: a
// vector, or 1 where rows or blocks are no whole vectors.
template <typename Element, int kCount>
__global__ void __launch_bounds__(kThreads) QuantizeBlocks(const __grid_constant__ Blocks blocks) {
  using Storage = typename Element::Storage;
  constexpr bool kVectors = kCount > 1;
  using Vector = LaneVector<Element, kLoadElements<Element>>;
  StartBehindPrevious();
  const BlockQuantMatrices& m = blocks.matrices;
  const bool failed = FailedBefore(blocks.record);
  const uint32_t block_row = blockIdx.x / blocks.across;
  const uint32_t block_column = blockIdx.x - block_row * blocks.across;
  const uint32_t matrix = block_row / blocks.down;
  const int64_t first_row = (block_row - matrix * blocks.down) * m.block_rows;
  const int64_t first_column = block_column * m.block_columns;
  const int64_t place = (matrix * m.rows + first_row) * m.columns + first_column;
  const auto* x = static_cast<const Storage*>(m.elements) + place;
  uint8_t* values = m.values + place;
  const int64_t rows = std::min(m.block_rows, m.rows - first_row);
  const int64_t width = std::min(m.block_columns, m.columns - first_column) / kCount;
  const int64_t count = rows * width;
  const Walk<kCount> start(width, m.columns);
  const int64_t first = threadIdx.x;
  float* scale_at = m.scales + blockIdx.x;

  if constexpr (kVectors) {
    constexpr int kHeld = 8;
    Vector held[kHeld];
    Walk<kCount> ahead = start;
#pragma unroll
    for (int k = 0; k < kHeld; ++k, ahead.Next()) {
      held[k] = Vector::LoadIf(first + k * kThreads < count, x + ahead.offset());
    }
    if (failed) return;
    // Calls body(vector, its offset) for all of the thread's vectors.
    const auto each = [&](const auto& body) {
      Walk<kCount> walk = start;
#pragma unroll
      for (int k = 0; k < kHeld; ++k, walk.Next()) {
        if (first + k * kThreads < count) body(held[k], walk.offset());
      }
#pragma unroll 1
      for (int64_t at = first + kHeld * kThreads; at < count; at += kThreads, walk.Next()) {
        body(Vector::Load(x + walk.offset()), walk.offset());
      }
    };
    uint32_t peak = 0;
    each([&](const Vector& v, int64_t) { peak = Peak<Element>::Larger(peak, v.PeakOf()); });
    auto largest = static_cast<Storage>(BlockMax<kThreads>(Peak<Element>::Bits(peak)));
    if (largest > Element::kInfinity) {  // a NaN, to be passed over
      peak = 0;
      each(
          [&](const Vector& v, int64_t) { peak = Peak<Element>::Larger(peak, v.NumbersPeakOf()); });
      largest = static_cast<Storage>(BlockMax<kThreads>(Peak<Element>::Bits(peak)));
    }
    const GroupScale made = BlockScaleOf(Element::ToFloat(largest), blocks.power_of_two);
    each([&](const Vector& v, int64_t at) {
      uint32_t codes[Vector::kElements / 4];
      EncodeAny<Encoding::kMultiply>(v, made, codes);
      StoreWords(values + at, codes);
    });
    if (threadIdx.x == 0) *scale_at = made.scale;
  } else {
    if (failed) return;
    uint32_t largest = 0;
    Walk<kCount> walk = start;
    for (int64_t i = first; i < count; i += kThreads, walk.Next()) {
      const uint32_t magnitude = BitsOfFloat(Element::ToFloat(x[walk.offset()])) & 0x7fffffffu;
      if (magnitude <= 0x7f800000u) largest = std::max(largest, magnitude);
    }
    const GroupScale made =
        BlockScaleOf(FloatOfBits(BlockMax<kThreads>(largest)), blocks.power_of_two);
    walk = start;
    for (int64_t i = first; i < count; i += kThreads, walk.Next()) {
      const float quotient = Element::ToFloat(x[walk.offset()]) * made.factor;
      values[walk.offset()] = static_cast<uint8_t>(E4M3OfFloats(quotient, 0.0f, 0.0f, 0.0f));
    }
    if (threadIdx.x == 0) *scale_at = made.scale;
  }
}

}  // namespace

void QuantizeBlock(const Exec& exec, const BlockQuantMatrices& matrices, int64_t batch,
                   bool power_of_two) {
  const int64_t across = NumGroups(matrices.columns, matrices.block_columns);
  const int64_t down = NumGroups(matrices.rows, matrices.block_rows);
  const Blocks blocks = {
      .matrices = matrices,
      .across = static_cast<uint32_t>(across),
      .down = static_cast<uint32_t>(down),
      .power_of_two = power_of_two,
      .record = exec.cuda_skip(),
  };
  WithElement(matrices.dtype, [&](auto element) {
    using Element = decltype(element);
    constexpr int kElements = kLoadElements<Element>;
    const bool vectors =
        Aligned16(matrices.elements, matrices.values) && matrices.columns % kElements == 0 &&
        (matrices.block_columns % kElements == 0 || matrices.block_columns >= matrices.columns) &&
        std::min(matrices.columns, matrices.block_columns) / kElements < int64_t{1} << 31;
    LaunchBehind(exec, vectors ? QuantizeBlocks<Element, kElements> : QuantizeBlocks<Element, 1>,
                 BlocksFor(batch * down * across, 1), kThreads, blocks);
  });
}

}  // namespace moe_ep::cuda
