#include "cpu/permute.h"
#include "cpu/slot_counts.h"
#include "cpu/unpermute.h"
#include "moe_ep/addon.h"

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

cpu::RowMove MoveOf(const Tensor& from, const Tensor& to) {
  if (!from) return {};
  const int64_t element_bytes = BitsOf(from.dtype()) / 8;
  return {
      .from = from.data<uint8_t>(),
      .from_stride = from.stride(0) * element_bytes,
      .to = to.data<uint8_t>(),
      .row_bytes = from.size(1) * element_bytes,
  };
}

// countExpertNumTokens(stream, topkIdx, expertMap | undefined, out)
Napi::Value CountExpertNumTokens(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor topk_idx = args.tensor(1);
  const Tensor expert_map = args.optional_tensor(2);
  const Tensor out = args.tensor(3);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    cpu::CountExpertNumTokens(exec, ExpertsOf(topk_idx, expert_map, out.numel()), topk_idx.numel(),
                              topk_idx.size(1), out.data<int32_t>());
  });
}

// permute(stream, x, scales | undefined, topkIdx, expertMap | undefined, reserved | undefined,
// rows, outScales | undefined,
//         expertIds, inversePermutation, expertStart, expertNumTokens, alignment, fillExpert,
//         zeroPadding)
Napi::Value Permute(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor x = args.tensor(1);
  const Tensor scales = args.optional_tensor(2);
  const Tensor topk_idx = args.tensor(3);
  const Tensor expert_map = args.optional_tensor(4);
  const Tensor reserved = args.optional_tensor(5);
  const Tensor rows = args.tensor(6);
  const Tensor out_scales = args.optional_tensor(7);
  const Tensor expert_ids = args.tensor(8);
  const Tensor inverse_permutation = args.tensor(9);
  const Tensor expert_start = args.tensor(10);
  const Tensor expert_num_tokens = args.tensor(11);
  const int64_t alignment = args.integer(12);
  const bool fill_expert = args.boolean(13);
  const bool zero_padding = args.boolean(14);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    cpu::Permute(exec,
                 {
                     .placement =
                         {
                             .experts = ExpertsOf(topk_idx, expert_map, expert_start.numel()),
                             .num_tokens = topk_idx.size(0),
                             .topk = topk_idx.size(1),
                             .alignment = alignment,
                             .reserved = reserved.data<int32_t>(),
                             .capacity = expert_ids.numel(),
                         },
                     .rows = MoveOf(x, rows),
                     .scales = MoveOf(scales, out_scales),
                     .fill_expert = fill_expert,
                     .zero_padding = zero_padding,
                 },
                 {
                     .row_of_slot = inverse_permutation.data<int32_t>(),
                     .expert_start = expert_start.data<int64_t>(),
                     .expert_num_tokens = expert_num_tokens.data<int32_t>(),
                 },
                 expert_ids.data<int32_t>());
  });
}

// unpermuteAndReduce(stream, expertRows, topkIdx, topkWeights, inversePermutation, expertMap |
// undefined, out)
Napi::Value UnpermuteAndReduce(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor rows = args.tensor(1);
  const Tensor topk_idx = args.tensor(2);
  const Tensor weights = args.tensor(3);
  const Tensor inverse_permutation = args.tensor(4);
  const Tensor expert_map = args.optional_tensor(5);
  const Tensor out = args.tensor(6);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    cpu::UnpermuteAndReduce(exec,
                            {
                                .experts = ExpertsOf(topk_idx, expert_map, kAnyNumberOfExperts),
                                .row_of_slot = inverse_permutation.data<int32_t>(),
                                .weights = weights.data<float>(),
                                .num_tokens = topk_idx.size(0),
                                .topk = topk_idx.size(1),
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
  Export(env, exports, "countExpertNumTokens", CountExpertNumTokens);
  Export(env, exports, "permute", Permute);
  Export(env, exports, "unpermuteAndReduce", UnpermuteAndReduce);
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_deepgemm_permute, Initialize)
