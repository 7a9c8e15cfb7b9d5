#include "binding/common.h"
#include "cpu/block_quant.h"
#include "moe_ep/quant/group_quant.h"

namespace moe_ep {
namespace {

// Elements and values are [N, K] or [E, N, K].
BlockQuantMatrices MatricesOf(const Tensor& elements, const Tensor& values, const Tensor& scales,
                              int64_t block_rows, int64_t block_columns) {
  return {
      .dtype = elements.dtype(),
      .rows = elements.size(elements.dims() - 2),
      .columns = elements.size(elements.dims() - 1),
      .block_rows = block_rows,
      .block_columns = block_columns,
      .elements = elements.data(),
      .values = values.data<uint8_t>(),
      .scales = scales.data<float>(),
  };
}

int64_t BatchOf(const Tensor& elements) { return elements.dims() == 3 ? elements.size(0) : 1; }

int64_t BlockRowsOf(const Tensor& elements, const BlockQuantMatrices& matrices) {
  return BatchOf(elements) * NumGroups(matrices.rows, matrices.block_rows);
}

int64_t BlockGrainOf(const BlockQuantMatrices& matrices) {
  return GrainOf(matrices.columns * std::min(matrices.block_rows, matrices.rows));
}

// quantizeBlock(stream, x, values, scales, blockRows, blockColumns, powerOfTwo)
Napi::Value QuantizeBlock(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor values = args.tensor(2);
  const Tensor scales = args.tensor(3);
  const int64_t block_rows = args.integer(4);
  const int64_t block_columns = args.integer(5);
  const bool power_of_two = args.boolean(6);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const auto matrices = MatricesOf(x, values, scales, block_rows, block_columns);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::QuantizeBlock(exec, matrices, BatchOf(x), power_of_two);
    }
    exec.ParallelFor(BlockRowsOf(x, matrices), BlockGrainOf(matrices),
                     [&](int64_t begin, int64_t end) {
                       cpu::QuantizeBlock(matrices, power_of_two, begin, end);
                     });
  });
}

// dequantizeBlock(stream, values, scales, out, blockRows, blockColumns)
Napi::Value DequantizeBlock(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor values = args.tensor(1);
  const Tensor scales = args.tensor(2);
  const Tensor out = args.tensor(3);
  const int64_t block_rows = args.integer(4);
  const int64_t block_columns = args.integer(5);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const auto matrices = MatricesOf(out, values, scales, block_rows, block_columns);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::DequantizeBlock(exec, matrices, BatchOf(out));
    }
    exec.ParallelFor(
        BlockRowsOf(out, matrices), BlockGrainOf(matrices),
        [&](int64_t begin, int64_t end) { cpu::DequantizeBlock(matrices, begin, end); });
  });
}

}  // namespace

void ExportBlockQuant(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "quantizeBlock", QuantizeBlock);
  Export(env, exports, "dequantizeBlock", DequantizeBlock);
}

}  // namespace moe_ep
