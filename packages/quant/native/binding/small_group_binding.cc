#include <cstring>

#include "binding/common.h"
#include "cpu/small_groups.h"

namespace moe_ep {
namespace {

SmallGroupMatrix MatrixOf(const Tensor& elements, const Tensor& values, const Tensor& scales,
                          bool swizzled) {
  return {
      .dtype = elements.dtype(),
      .code_dtype = values.dtype(),
      .hidden = elements.size(1),
      .elements = elements.data(),
      .values = values.data<uint8_t>(),
      .scales = scales.data<uint8_t>(),
      .row_scales = scales.size(1),
      .swizzled = swizzled,
  };
}

// quantizeMx(stream, x [M, H], values, scales [M, G], rule)
Napi::Value QuantizeMx(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor values = args.tensor(2);
  const Tensor scales = args.tensor(3);
  const auto rule = static_cast<MxScaleRule>(args.integer(4));
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const auto matrix = MatrixOf(x, values, scales, false);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::QuantizeMx(exec, matrix, x.size(0), rule);
    }
    exec.ParallelFor(x.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::QuantizeMx(matrix, rule, begin, end);
    });
  });
}

// dequantizeMx(stream, values, scales [M, G], out [M, H])
Napi::Value DequantizeMx(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor values = args.tensor(1);
  const Tensor scales = args.tensor(2);
  const Tensor out = args.tensor(3);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const auto matrix = MatrixOf(out, values, scales, false);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::DequantizeMx(exec, matrix, out.size(0));
    }
    exec.ParallelFor(out.size(0), GrainOf(matrix.hidden),
                     [&](int64_t begin, int64_t end) { cpu::DequantizeMx(matrix, begin, end); });
  });
}

// quantizeNvfp4(stream, x [M, H], globalScale [1], values, scales, swizzled)
Napi::Value QuantizeNvfp4(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor global = args.tensor(2);
  const Tensor values = args.tensor(3);
  const Tensor scales = args.tensor(4);
  const bool swizzled = args.boolean(5);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const auto matrix = MatrixOf(x, values, scales, swizzled);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::QuantizeNvfp4(exec, matrix, x.size(0), global.data<float>());
    }
    // Places of the tiles that no group has must read as zero.
    if (swizzled) std::memset(scales.data(), 0, static_cast<size_t>(scales.numel()));
    exec.ParallelFor(x.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::QuantizeNvfp4(matrix, *global.data<float>(), begin, end);
    });
  });
}

// dequantizeNvfp4(stream, values, scales, globalScale [1], out [M, H], swizzled)
Napi::Value DequantizeNvfp4(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor values = args.tensor(1);
  const Tensor scales = args.tensor(2);
  const Tensor global = args.tensor(3);
  const Tensor out = args.tensor(4);
  const bool swizzled = args.boolean(5);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const auto matrix = MatrixOf(out, values, scales, swizzled);
    if constexpr (kCuda) {
      if (exec.on_cuda())
        return cuda::DequantizeNvfp4(exec, matrix, out.size(0), global.data<float>());
    }
    exec.ParallelFor(out.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::DequantizeNvfp4(matrix, *global.data<float>(), begin, end);
    });
  });
}

}  // namespace

void ExportSmallGroups(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "quantizeMx", QuantizeMx);
  Export(env, exports, "dequantizeMx", DequantizeMx);
  Export(env, exports, "quantizeNvfp4", QuantizeNvfp4);
  Export(env, exports, "dequantizeNvfp4", DequantizeNvfp4);
}

}  // namespace moe_ep
