#include <algorithm>

#include "cpu/group_quant.h"
#include "moe_ep/addon.h"

namespace moe_ep {
namespace {

cpu::GroupQuantMatrix MatrixOf(const Tensor& elements, const Tensor& values, const Tensor& scales,
                               int64_t group_size) {
  return {
      .dtype = elements.dtype(),
      .hidden = elements.size(1),
      .group_size = group_size,
      .elements = elements.data(),
      .values = values.data<uint8_t>(),
      .scales = scales.data<float>(),
  };
}

// Rows that are worth a thread: waking one costs as much as some ten thousand elements.
int64_t GrainOf(int64_t hidden) { return std::max<int64_t>(1, 16384 / hidden); }

// quantizePerTokenGroup(stream, x [M, H], values [M, H], scales [M, G], groupSize, deepep)
Napi::Value QuantizePerTokenGroup(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor values = args.tensor(2);
  const Tensor scales = args.tensor(3);
  const int64_t group_size = args.integer(4);
  const GroupNumerics numerics = args.boolean(5) ? GroupNumerics::kDeepEp : GroupNumerics::kVllm;
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const cpu::GroupQuantMatrix matrix = MatrixOf(x, values, scales, group_size);
    exec.ParallelFor(x.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::QuantizePerTokenGroup(matrix, numerics, begin, end);
    });
  });
}

// dequantizePerTokenGroup(stream, values [M, H], scales [M, G], out [M, H], groupSize)
Napi::Value DequantizePerTokenGroup(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor values = args.tensor(1);
  const Tensor scales = args.tensor(2);
  const Tensor out = args.tensor(3);
  const int64_t group_size = args.integer(4);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const cpu::GroupQuantMatrix matrix = MatrixOf(out, values, scales, group_size);
    exec.ParallelFor(out.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::DequantizePerTokenGroup(matrix, begin, end);
    });
  });
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "quantizePerTokenGroup", QuantizePerTokenGroup);
  Export(env, exports, "dequantizePerTokenGroup", DequantizePerTokenGroup);
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_quant, Initialize)
