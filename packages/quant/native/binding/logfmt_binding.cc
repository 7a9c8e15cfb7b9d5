#include "binding/common.h"
#include "cpu/logfmt.h"

namespace moe_ep {
namespace {

LogFmtMatrix MatrixOf(const Tensor& elements, const Tensor& codes, const Tensor& ranges) {
  return {
      .dtype = elements.dtype(),
      .hidden = elements.size(1),
      .elements = elements.data(),
      .codes = codes.data<uint8_t>(),
      .ranges = ranges.data<uint16_t>(),
  };
}

// quantizeLogFmt10(stream, x [M, H], codes, ranges)
Napi::Value QuantizeLogFmt10(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor codes = args.tensor(2);
  const Tensor ranges = args.tensor(3);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const LogFmtMatrix matrix = MatrixOf(x, codes, ranges);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::QuantizeLogFmt10(exec, matrix, x.size(0));
    }
    exec.ParallelFor(x.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::QuantizeLogFmt10(matrix, begin, end);
    });
  });
}

// dequantizeLogFmt10(stream, codes, ranges, out [M, H])
Napi::Value DequantizeLogFmt10(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor codes = args.tensor(1);
  const Tensor ranges = args.tensor(2);
  const Tensor out = args.tensor(3);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const LogFmtMatrix matrix = MatrixOf(out, codes, ranges);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::DequantizeLogFmt10(exec, matrix, out.size(0));
    }
    exec.ParallelFor(out.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::DequantizeLogFmt10(matrix, begin, end);
    });
  });
}

}  // namespace

void ExportLogFmt(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "quantizeLogFmt10", QuantizeLogFmt10);
  Export(env, exports, "dequantizeLogFmt10", DequantizeLogFmt10);
}

}  // namespace moe_ep
