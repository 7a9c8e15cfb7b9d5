#include <optional>

#include "moe_ep/addon.h"
#include "operations.h"

namespace moe_ep {
namespace {

// Without a map the ids are local, below `num_local`.
LocalExperts ExpertsOf(const Tensor& topk_idx, const Tensor& expert_map, int64_t num_local) {
  return {
      .ids = topk_idx.data(),
      .wide = topk_idx.dtype() == DType::kI64,
      .map = expert_map.data<int32_t>(),
      .num_global = expert_map ? expert_map.size(0) : num_local,
      .num_local = num_local,
  };
}

int64_t ElementBytes(const Tensor& tensor) { return BitsOf(tensor.dtype()) / 8; }

// The output's rows lie without gaps, in as many dimensions as the layout has.
RowMove RowsOf(const Tensor& from, const Tensor& to) {
  return {
      .from = from.data<uint8_t>(),
      .from_stride = from.stride(0) * ElementBytes(from),
      .to = to.data<uint8_t>(),
      .row_bytes = from.size(1) * ElementBytes(from),
  };
}

// `to` is [rows, columns] or [experts, rows, columns], with any strides.
ScaleMove ScalesOf(const Tensor& from, const Tensor& to) {
  if (!from) return {};
  const int64_t from_bytes = ElementBytes(from);
  const int64_t to_bytes = ElementBytes(to);
  const int row = to.dims() - 2;
  return {
      .from = from.data<uint8_t>(),
      .from_row_stride = from.stride(0) * from_bytes,
      .from_column_stride = from.stride(1) * from_bytes,
      .columns = from.size(1),
      .element_bytes = from_bytes,
      .pack = from_bytes != to_bytes,
      .to = to.data<uint8_t>(),
      .rows_per_batch = to.size(row),
      .to_batch_stride = row == 0 ? 0 : to.stride(0) * to_bytes,
      .to_row_stride = to.stride(row) * to_bytes,
      .to_column_stride = to.stride(row + 1) * to_bytes,
  };
}

// What to do, as the last argument of permute().
struct PermuteSettings {
  int64_t alignment;
  int64_t rows_per_expert;
  PaddingIds padding_ids;
  bool zero_rows;
  bool zero_scales;
  bool foreign_last;

  explicit PermuteSettings(const Napi::Object& object)
      : alignment(object.Get("alignment").As<Napi::Number>().Int64Value()),
        rows_per_expert(object.Get("rowsPerExpert").As<Napi::Number>().Int64Value()),
        padding_ids{.inside = OptionalId(object.Get("idInside")),
                    .behind = OptionalId(object.Get("idBehind"))},
        zero_rows(object.Get("zeroRows").As<Napi::Boolean>().Value()),
        zero_scales(object.Get("zeroScales").As<Napi::Boolean>().Value()),
        foreign_last(object.Get("foreignLast").As<Napi::Boolean>().Value()) {}

 private:
  static std::optional<int32_t> OptionalId(const Napi::Value& value) {
    if (value.IsUndefined()) return std::nullopt;
    return value.As<Napi::Number>().Int32Value();
  }
};

// countExpertNumTokens(stream, topkIdx, expertMap | undefined, out)
Napi::Value EnqueueCountExpertNumTokens(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor topk_idx = args.tensor(1);
  const Tensor expert_map = args.optional_tensor(2);
  const Tensor out = args.tensor(3);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    CountExpertNumTokens(exec, ExpertsOf(topk_idx, expert_map, out.numel()), topk_idx.numel(),
                         topk_idx.size(1), out.data<int32_t>());
  });
}

// permute(stream, x, scales | undefined, topkIdx, expertMap | undefined, reserved | undefined,
//         rows, outScales | undefined, expertIds | undefined, inversePermutation, expertStart,
//         expertEnd | undefined, expertNumTokens, settings)
Napi::Value EnqueuePermute(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor scales = args.optional_tensor(2);
  const Tensor topk_idx = args.tensor(3);
  const Tensor expert_map = args.optional_tensor(4);
  const Tensor reserved = args.optional_tensor(5);
  const Tensor rows = args.tensor(6);
  const Tensor out_scales = args.optional_tensor(7);
  const Tensor expert_ids = args.optional_tensor(8);
  const Tensor inverse_permutation = args.tensor(9);
  const Tensor expert_start = args.tensor(10);
  const Tensor expert_end = args.optional_tensor(11);
  const Tensor expert_num_tokens = args.tensor(12);
  const PermuteSettings settings(args.value(13).As<Napi::Object>());
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const bool masked = settings.rows_per_expert > 0;
    Permute(exec,
            {
                .placement =
                    {
                        .experts = ExpertsOf(topk_idx, expert_map, expert_num_tokens.numel()),
                        .num_tokens = topk_idx.size(0),
                        .topk = topk_idx.size(1),
                        .alignment = settings.alignment,
                        .rows_per_expert = settings.rows_per_expert,
                        .reserved = reserved.data<int32_t>(),
                        .capacity = masked ? rows.size(0) * rows.size(1) : rows.size(0),
                        .foreign_last = settings.foreign_last,
                    },
                .rows = RowsOf(x, rows),
                .scales = ScalesOf(scales, out_scales),
                .padding_ids = settings.padding_ids,
                .zero_rows = settings.zero_rows,
                .zero_scales = settings.zero_scales,
            },
            {
                .row_of_slot = inverse_permutation.data<int32_t>(),
                .expert_start = expert_start.data<int64_t>(),
                .expert_end = expert_end.data<int32_t>(),
                .expert_num_tokens = expert_num_tokens.data<int32_t>(),
            },
            expert_ids.data<int32_t>());
  });
}

// unpermuteAndReduce(stream, expertRows, topkIdx | undefined, topkWeights, inversePermutation,
//                    expertMap | undefined, numValidRows | undefined, out)
Napi::Value EnqueueUnpermuteAndReduce(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor rows = args.tensor(1);
  const Tensor topk_idx = args.optional_tensor(2);
  const Tensor weights = args.tensor(3);
  const Tensor inverse_permutation = args.tensor(4);
  const Tensor expert_map = args.optional_tensor(5);
  const Tensor num_valid_rows = args.optional_tensor(6);
  const Tensor out = args.tensor(7);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    std::optional<LocalExperts> experts;
    if (topk_idx) experts = ExpertsOf(topk_idx, expert_map, kAnyNumberOfExperts);
    UnpermuteAndReduce(exec, {
                                 .experts = experts,
                                 .num_valid_rows = num_valid_rows.data<int64_t>(),
                                 .row_of_slot = inverse_permutation.data<int32_t>(),
                                 .weights = weights.data<float>(),
                                 .num_tokens = weights.size(0),
                                 .topk = weights.size(1),
                                 .hidden = out.size(1),
                                 .rows = rows.data(),
                                 .rows_dtype = rows.dtype(),
                                 .row_stride = rows.stride(0),
                                 .num_rows = rows.size(0),
                                 .out = out.data(),
                                 .out_dtype = out.dtype(),
                             });
  });
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "countExpertNumTokens", EnqueueCountExpertNumTokens);
  Export(env, exports, "permute", EnqueuePermute);
  Export(env, exports, "unpermuteAndReduce", EnqueueUnpermuteAndReduce);
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_deepgemm_permute, Initialize)
