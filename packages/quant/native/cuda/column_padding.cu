#include "cuda/column_padding.cuh"

namespace moe_ep::cuda {
namespace {

constexpr int64_t kElement = 4;
constexpr int kThreads = 256;

// Directly behind the kernel that fills the columns, which touches no gap: zeros need not wait for
// it. The end does, for who comes next.
__global__ void ZeroGaps(uint8_t* data, int64_t rows, int64_t gap, int64_t gaps,
                         int64_t column_stride, int64_t count, int64_t stride,
                         const moe_ep_failure_record* record) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count && !Failed(record)) {
    const int64_t column = i / gap;
    auto* at =
        reinterpret_cast<float*>(data + column / gaps * stride + column % gaps * column_stride);
    at[rows + i % gap] = 0.0f;
  }
  StartBehindPrevious();
}

}  // namespace

void ZeroColumnPadding(const Exec& exec, const ScaleMatrix& scales, int64_t matrices,
                       int64_t stride) {
  if (scales.row_stride != kElement || scales.columns < 2) return;
  const int64_t gap = scales.column_stride / kElement - scales.rows;
  const int64_t gaps = scales.columns - 1;
  if (gap <= 0) return;
  const int64_t count = matrices * gaps * gap;
  LaunchBehind(exec, ZeroGaps, BlocksFor(count, kThreads), kThreads, scales.data, scales.rows, gap,
               gaps, scales.column_stride, count, stride, exec.cuda_skip());
}

}  // namespace moe_ep::cuda
