#include "moe_ep/quant/silu_mul.cuh"

#include <algorithm>

#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "cuda/used_strips.cuh"
#include "moe_ep/quant/warp_items.cuh"

namespace moe_ep::cuda {
namespace {

struct Gated {
  const void* x;
  void* out;
  int64_t hidden;
  float limit;
  MaskedBatch batch;
  const moe_ep_failure_record* record;
};

constexpr int kThreads = 128;
constexpr int kRows = 4;

// A warp takes kRows rows of 32 vectors.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    SiluMulTiles(const __grid_constant__ Gated m, int64_t column_tiles) {
  constexpr int kElements = kLoadElements<Element>;
  constexpr int kWarps = kThreads / 32;
  using Vector = LaneVector<Element, kElements>;
  __shared__ UsedStrips<kRows>::Memory memory;
  StartBehindPrevious();
  const UsedStrips<kRows> strips(m.batch, memory);
  const bool failed = Failed(m.record);
  strips.template ForTiles<kWarps>(column_tiles, [&](const Strip& strip, int64_t column_tile) {
    const int64_t column = (column_tile * 32 + LaneOfWarp()) * kElements;
    const int64_t row = strip.matrix * m.batch.rows + strip.first_row;
    const auto* x =
        static_cast<const typename Element::Storage*>(m.x) + row * 2 * m.hidden + column;
    auto* out = static_cast<typename Element::Storage*>(m.out) + row * m.hidden + column;
    Vector gates[kRows];
    Vector ups[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool inside = strip.first_row + r < strip.rows && column < m.hidden;
      gates[r] = Vector::LoadIf(inside, x + r * 2 * m.hidden);
      ups[r] = Vector::LoadIf(inside, x + (r * 2 + 1) * m.hidden);
    }
    if (failed) return false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Vector product = SiluMul<Element, false>(gates[r], ups[r], m.limit);
      if (strip.first_row + r < strip.rows && column < m.hidden) product.Store(out + r * m.hidden);
    }
    return true;
  });
}

// One product after the other, for rows without the alignment for vectors.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    SiluMulElements(const __grid_constant__ Gated m, int64_t blocks_per_row) {
  StartBehindPrevious();
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t column = blockIdx.x % blocks_per_row * kThreads + threadIdx.x;
  const int64_t matrix = row / m.batch.rows;
  if (column >= m.hidden || row - matrix * m.batch.rows >= m.batch.RowsOf(matrix)) return;
  if (Failed(m.record)) return;
  const auto* x = static_cast<const typename Element::Storage*>(m.x) + row * 2 * m.hidden;
  const float product = SiluMulOf<Element, false>(
      Element::LaneToFloat(x[column]), Element::LaneToFloat(x[m.hidden + column]), m.limit);
  static_cast<typename Element::Storage*>(m.out)[row * m.hidden + column] =
      Element::LaneFromFloat(product);
}

}  // namespace

void SiluMul(const Exec& exec, const GatedMatrix& matrix, const MaskedBatch& batch, void* out) {
  const Gated m = {matrix.x, out, matrix.hidden, matrix.limit, batch, exec.cuda_skip()};
  WithElement(matrix.dtype, [&](auto element) {
    using Element = decltype(element);
    constexpr int64_t kElements = kLoadElements<Element>;
    if (Aligned16(matrix.x, out) && matrix.hidden % kElements == 0) {
      const int64_t column_tiles = CeilDiv(matrix.hidden, 32 * kElements);
      const int64_t tiles = batch.batch * UsedStrips<kRows>::OfMatrix(batch) * column_tiles;
      LaunchBehind(exec, SiluMulTiles<Element>, BlocksForTiles(exec, batch, tiles, kThreads / 32),
                   kThreads, m, column_tiles);
    } else {
      const int64_t blocks = CeilDiv(matrix.hidden, kThreads);
      LaunchBehind(exec, SiluMulElements<Element>, BlocksFor(batch.batch * batch.rows * blocks, 1),
                   kThreads, m, blocks);
    }
  });
}

}  // namespace moe_ep::cuda
