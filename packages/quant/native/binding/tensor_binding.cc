#include <atomic>

#include "binding/common.h"
#include "cpu/group_quant.h"
#include "cpu/tensor_quant.h"
#include "moe_ep/quant/tensor_quant.h"

namespace moe_ep {
namespace {

constexpr int64_t kGrain = 16384;

float LargestOf(const Exec& exec, const Tensor& x) {
  std::atomic<uint32_t> largest = 0;  // bits of magnitudes rise with them, and no order matters
  exec.ParallelFor(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    const uint32_t bits = BitsOfFloat(cpu::LargestMagnitude(x.dtype(), x.data(), begin, end));
    uint32_t seen = largest.load();
    while (seen < bits && !largest.compare_exchange_weak(seen, bits)) {
    }
  });
  return FloatOfBits(largest.load());
}

// quantizePerTensor(stream, x, values, scale [1], dynamic): `scale` is written when dynamic, else
// read.
Napi::Value QuantizePerTensor(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor values = args.tensor(2);
  const Tensor scale = args.tensor(3);
  const bool dynamic = args.boolean(4);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    if constexpr (kCuda) {
      if (exec.on_cuda())
        return cuda::QuantizePerTensor(exec, x.dtype(), x.data(), x.numel(), scale.data<float>(),
                                       dynamic, values.data<uint8_t>());
    }
    if (dynamic) *scale.data<float>() = TensorScaleOf(LargestOf(exec, x));
    exec.ParallelFor(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      cpu::QuantizePerTensor(x.dtype(), x.data(), *scale.data<float>(), values.data<uint8_t>(),
                             begin, end);
    });
  });
}

// dequantizePerTensor(stream, values, scale [1], out)
Napi::Value DequantizePerTensor(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor values = args.tensor(1);
  const Tensor scale = args.tensor(2);
  const Tensor out = args.tensor(3);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    if constexpr (kCuda) {
      if (exec.on_cuda())
        return cuda::DequantizePerTensor(exec, out.dtype(), values.data<uint8_t>(),
                                         scale.data<float>(), values.numel(), out.data());
    }
    const int64_t bytes = BitsOf(out.dtype()) / 8;
    exec.ParallelFor(values.numel(), kGrain, [&](int64_t begin, int64_t end) {
      const GroupQuantMatrix row = {
          .dtype = out.dtype(),
          .hidden = end - begin,
          .group_size = end - begin,
          .elements = out.data<uint8_t>() + begin * bytes,
          .values = values.data<uint8_t>() + begin,
          .scales = {.data = scale.data<uint8_t>(),
                     .rows = 1,
                     .columns = 1,
                     .row_stride = 4,
                     .column_stride = 4,
                     .packed = false},
      };
      cpu::DequantizePerTokenGroup(row, 0, 1);
    });
  });
}

}  // namespace

void ExportTensorQuant(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "quantizePerTensor", QuantizePerTensor);
  Export(env, exports, "dequantizePerTensor", DequantizePerTensor);
}

}  // namespace moe_ep
