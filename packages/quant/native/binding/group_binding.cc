#include "binding/common.h"
#include "cpu/group_quant.h"

namespace moe_ep {
namespace {

GroupQuantMatrix MatrixOf(const Tensor& elements, const Tensor& values, const Tensor& scales,
                          int64_t group_size) {
  return {
      .dtype = elements.dtype(),
      .hidden = elements.size(1),
      .group_size = group_size,
      .elements = elements.data(),
      .values = values.data<uint8_t>(),
      .scales = ScalesOf(scales),
  };
}

// quantizePerTokenGroup(stream, x [M, H], values [M, H], scales [M, G or words], groupSize,
// numerics, powerOfTwo, upperBound): `numerics` is a GroupNumerics, `upperBound` limits amax for
// kPerToken.
Napi::Value QuantizePerTokenGroup(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor values = args.tensor(2);
  const Tensor scales = args.tensor(3);
  const int64_t group_size = args.integer(4);
  const ScaleRule rule = {
      .numerics = static_cast<GroupNumerics>(args.integer(5)),
      .power_of_two = args.boolean(6),
      .upper_bound = static_cast<float>(args.number(7)),
  };
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const GroupQuantMatrix matrix = MatrixOf(x, values, scales, group_size);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::QuantizePerTokenGroup(exec, matrix, x.size(0), rule);
    }
    cpu::ZeroColumnPadding(matrix.scales);
    exec.ParallelFor(x.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::QuantizePerTokenGroup(matrix, rule, begin, end);
    });
  });
}

// dequantizePerTokenGroup(stream, values [M, H], scales [M, G or words], out [M, H], groupSize)
Napi::Value DequantizePerTokenGroup(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor values = args.tensor(1);
  const Tensor scales = args.tensor(2);
  const Tensor out = args.tensor(3);
  const int64_t group_size = args.integer(4);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const GroupQuantMatrix matrix = MatrixOf(out, values, scales, group_size);
    if constexpr (kCuda) {
      if (exec.on_cuda()) return cuda::DequantizePerTokenGroup(exec, matrix, out.size(0));
    }
    exec.ParallelFor(out.size(0), GrainOf(matrix.hidden), [&](int64_t begin, int64_t end) {
      cpu::DequantizePerTokenGroup(matrix, begin, end);
    });
  });
}

}  // namespace

void ExportGroupQuant(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "quantizePerTokenGroup", QuantizePerTokenGroup);
  Export(env, exports, "dequantizePerTokenGroup", DequantizePerTokenGroup);
}

}  // namespace moe_ep
