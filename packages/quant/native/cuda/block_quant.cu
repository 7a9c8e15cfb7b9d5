#include "moe_ep/quant/block_quant.h"

#include <algorithm>

#include "cuda/block_max.cuh"
#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/quant/group_quant.cuh"

namespace moe_ep::cuda {
namespace {

constexpr int kThreads = 256;

// A block of threads takes a block of the matrix. kCount neighbours of a row are read at once: a
// vector, or 1 where rows or blocks are no whole vectors.
template <typename Element, int kCount>
__global__ void __launch_bounds__(kThreads)
    QuantizeBlocks(const __grid_constant__ BlockQuantMatrices m, bool power_of_two,
                   const moe_ep_failure_record* record) {
  using Storage = typename Element::Storage;
  constexpr bool kVectors = kCount > 1;
  using Vector = LaneVector<Element, kLoadElements<Element>>;
  const bool failed = Failed(record);
  const int64_t across = NumGroups(m.columns, m.block_columns);
  const int64_t down = NumGroups(m.rows, m.block_rows);
  const int64_t block_row = blockIdx.x / across;
  const int64_t first_row = block_row % down * m.block_rows;
  const int64_t first_column = blockIdx.x % across * m.block_columns;
  const int64_t place = (block_row / down * m.rows + first_row) * m.columns + first_column;
  const auto* x = static_cast<const Storage*>(m.elements) + place;
  uint8_t* values = m.values + place;
  const int64_t rows = std::min(m.block_rows, m.rows - first_row);
  const int64_t width = std::min(m.block_columns, m.columns - first_column) / kCount;
  const int64_t count = rows * width;
  // Offset of the i-th vector or element; small blocks need no long division.
  const auto offset = [&](int64_t i) {
    if (count <= 0x7fffffff) {
      const uint32_t row = static_cast<uint32_t>(i) / static_cast<uint32_t>(width);
      const uint32_t column = static_cast<uint32_t>(i) - row * static_cast<uint32_t>(width);
      return row * m.columns + column * kCount;
    }
    return i / width * m.columns + i % width * kCount;
  };
  const int64_t first = threadIdx.x;
  float* scale_at = m.scales + blockIdx.x;

  if constexpr (kVectors) {
    constexpr int kHeld = 8;
    Vector held[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int64_t at = first + k * kThreads;
      held[k] = Vector::LoadIf(at < count, x + (at < count ? offset(at) : 0));
    }
    if (failed) return;
    // Calls body(vector, its offset) for all of the thread's vectors.
    const auto each = [&](const auto& body) {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        if (first + k * kThreads < count) body(held[k], offset(first + k * kThreads));
      }
      for (int64_t at = first + kHeld * kThreads; at < count; at += kThreads) {
        body(Vector::Load(x + offset(at)), offset(at));
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
    const GroupScale made = BlockScaleOf(Element::ToFloat(largest), power_of_two);
    each([&](const Vector& v, int64_t at) {
      uint32_t codes[Vector::kElements / 4];
      EncodeAny<Encoding::kMultiply>(v, made, codes);
      StoreWords(values + at, codes);
    });
    if (threadIdx.x == 0) *scale_at = made.scale;
  } else {
    if (failed) return;
    uint32_t largest = 0;
    for (int64_t i = first; i < count; i += kThreads) {
      const uint32_t magnitude = BitsOfFloat(Element::ToFloat(x[offset(i)])) & 0x7fffffffu;
      if (magnitude <= 0x7f800000u) largest = std::max(largest, magnitude);
    }
    const GroupScale made = BlockScaleOf(FloatOfBits(BlockMax<kThreads>(largest)), power_of_two);
    for (int64_t i = first; i < count; i += kThreads) {
      const float quotient = Element::ToFloat(x[offset(i)]) * made.factor;
      values[offset(i)] = static_cast<uint8_t>(E4M3OfFloats(quotient, 0.0f, 0.0f, 0.0f));
    }
    if (threadIdx.x == 0) *scale_at = made.scale;
  }
}

}  // namespace

void QuantizeBlock(const Exec& exec, const BlockQuantMatrices& matrices, int64_t batch,
                   bool power_of_two) {
  const int64_t blocks = batch * NumGroups(matrices.rows, matrices.block_rows) *
                         NumGroups(matrices.columns, matrices.block_columns);
  WithElement(matrices.dtype, [&](auto element) {
    using Element = decltype(element);
    constexpr int kElements = kLoadElements<Element>;
    const bool vectors =
        Aligned16(matrices.elements, matrices.values) && matrices.columns % kElements == 0 &&
        (matrices.block_columns % kElements == 0 || matrices.block_columns >= matrices.columns);
    Launch(vectors ? QuantizeBlocks<Element, kElements> : QuantizeBlocks<Element, 1>,
           {BlocksFor(blocks, 1), kThreads}, exec.cuda_stream(), matrices, power_of_two,
           exec.cuda_skip());
  });
}

}  // namespace moe_ep::cuda
