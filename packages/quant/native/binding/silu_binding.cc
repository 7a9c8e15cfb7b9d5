#include "binding/common.h"
#include "binding/masked_rows.h"
#include "cpu/silu_mul.h"

namespace moe_ep {
namespace {

// x is [E, T, 2H] or [T, 2H].
int64_t BatchSizeOf(const Tensor& x) { return x.dims() == 3 ? x.size(0) : 1; }

cuda::MaskedBatch BatchOf(const Tensor& x, const Tensor& counts, const Tensor& scales = Tensor()) {
  constexpr int64_t kElement = 4;
  return {
      .batch = BatchSizeOf(x),
      .rows = x.size(x.dims() - 2),
      .counts = counts.data<const int32_t>(),
      .scale_stride = scales && scales.dims() == 3 ? scales.stride(0) * kElement : 0,
  };
}

GatedMatrix MatrixOf(const Tensor& x, int64_t matrix, float limit) {
  const int64_t rows = x.size(x.dims() - 2);
  const int64_t width = x.size(x.dims() - 1);
  return {
      .dtype = x.dtype(),
      .hidden = width / 2,
      .x = x.data<uint8_t>() + matrix * rows * width * (BitsOf(x.dtype()) / 8),
      .limit = limit,
  };
}

GroupQuantMatrix QuantizedOf(const Tensor& x, const Tensor& values, const Tensor& scales,
                             int64_t group_size, int64_t matrix) {
  const int64_t rows = x.size(x.dims() - 2);
  const int64_t hidden = x.size(x.dims() - 1) / 2;
  return {
      .dtype = x.dtype(),
      .hidden = hidden,
      .group_size = group_size,
      .elements = nullptr,
      .values = values.data<uint8_t>() + matrix * rows * hidden,
      .scales = ScalesOf(scales, matrix),
  };
}

// siluMul(stream, x, out, counts | null, limit)
Napi::Value SiluMul(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor out = args.tensor(2);
  const Tensor counts = args.optional_tensor(3);
  const auto limit = static_cast<float>(args.number(4));
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const int64_t rows = x.size(x.dims() - 2);
    const int64_t hidden = x.size(x.dims() - 1) / 2;
    if constexpr (kCuda) {
      if (exec.on_cuda())
        return cuda::SiluMul(exec, MatrixOf(x, 0, limit), BatchOf(x, counts), out.data());
    }
    const int64_t bytes = rows * hidden * (BitsOf(x.dtype()) / 8);
    const MaskedRows masked(BatchSizeOf(x), rows, counts);
    masked.ParallelFor(exec, GrainOf(hidden), [&](int64_t matrix, int64_t begin, int64_t end) {
      cpu::SiluMul(MatrixOf(x, matrix, limit), out.data<uint8_t>() + matrix * bytes, begin, end);
    });
  });
}

// siluMulQuantize(stream, x, values, scales, counts | null, limit, groupSize, numerics, powerOfTwo)
Napi::Value SiluMulQuantize(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor values = args.tensor(2);
  const Tensor scales = args.tensor(3);
  const Tensor counts = args.optional_tensor(4);
  const auto limit = static_cast<float>(args.number(5));
  const int64_t group_size = args.integer(6);
  const ScaleRule rule = {
      .numerics = static_cast<GroupNumerics>(args.integer(7)),
      .power_of_two = args.boolean(8),
  };
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const int64_t rows = x.size(x.dims() - 2);
    const int64_t hidden = x.size(x.dims() - 1) / 2;
    const int64_t batch = BatchSizeOf(x);
    if constexpr (kCuda) {
      if (exec.on_cuda())
        return cuda::SiluMulQuantize(exec, MatrixOf(x, 0, limit), BatchOf(x, counts, scales),
                                     QuantizedOf(x, values, scales, group_size, 0), rule);
    }
    for (int64_t matrix = 0; matrix < batch; ++matrix)
      cpu::ZeroColumnPadding(ScalesOf(scales, matrix));
    const MaskedRows masked(batch, rows, counts);
    masked.ParallelFor(exec, GrainOf(hidden), [&](int64_t matrix, int64_t begin, int64_t end) {
      cpu::SiluMulQuantize(MatrixOf(x, matrix, limit),
                           QuantizedOf(x, values, scales, group_size, matrix), rule, begin, end);
    });
  });
}

}  // namespace

void ExportSiluMul(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "siluMul", SiluMul);
  Export(env, exports, "siluMulQuantize", SiluMulQuantize);
}

}  // namespace moe_ep
