#include "cpu/layout.h"
#include "cuda/layout.h"
#include "invalid_id.h"
#include "moe_ep/addon.h"

namespace moe_ep {
namespace {

// getDispatchLayout(stream, topkIdx, numTokensPerRank, numTokensPerRdmaRank | undefined,
// numTokensPerExpert, isTokenInRank, ranksPerNode)
Napi::Value GetDispatchLayout(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor topk_idx = args.tensor(1);
  const Tensor per_rank = args.tensor(2);
  const Tensor per_node = args.optional_tensor(3);
  const Tensor per_expert = args.tensor(4);
  const Tensor in_rank = args.tensor(5);
  const int64_t ranks_per_node = args.integer(6);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const TopkIds ids(topk_idx);
    const DispatchLayout layout = {
        .placement = {per_expert.size(0), per_rank.size(0)},
        .num_tokens = topk_idx.size(0),
        .num_topk = topk_idx.size(1),
        .ranks_per_node = ranks_per_node,
        .num_tokens_per_rank = per_rank.data<int32_t>(),
        .num_tokens_per_rdma_rank = per_node.data<int32_t>(),
        .num_tokens_per_expert = per_expert.data<int32_t>(),
        .is_token_in_rank = in_rank.data<uint8_t>(),
    };
#if MOE_EP_CUDA
    if (exec.on_cuda()) return cuda::GetDispatchLayout(exec, ids, layout);
#endif
    const int64_t experts = layout.placement.experts;
    const int64_t invalid = FindInvalidId(ids, topk_idx.numel(), experts);
    if (invalid >= 0) {
      const int64_t values[] = {experts, ids[invalid], invalid / layout.num_topk,
                                invalid % layout.num_topk};
      moe_ep_failure_text text;
      DescribeInvalidId(values, &text);
      return exec.Fail(text.code, text.message);
    }
    cpu::GetDispatchLayout(ids, layout);
  });
}

// getRankPrefixMatrix(stream, numTokensPerRank [R, R], out [R, R])
Napi::Value GetRankPrefixMatrix(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor counts = args.tensor(1);
  const Tensor out = args.tensor(2);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
#if MOE_EP_CUDA
    if (exec.on_cuda()) {
      return cuda::GetRankPrefixMatrix(exec, counts.data<int32_t>(), counts.size(0),
                                       out.data<int32_t>());
    }
#endif
    cpu::GetRankPrefixMatrix(counts.data<int32_t>(), counts.size(0), out.data<int32_t>());
  });
}

// getChannelPrefixMatrix(stream, isTokenInRank [T, R], out [R, C])
Napi::Value GetChannelPrefixMatrix(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor in_rank = args.tensor(1);
  const Tensor out = args.tensor(2);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
#if MOE_EP_CUDA
    if (exec.on_cuda()) {
      return cuda::GetChannelPrefixMatrix(exec, in_rank.data<uint8_t>(), in_rank.size(0),
                                          in_rank.size(1), out.size(1), out.data<int32_t>());
    }
#endif
    cpu::GetChannelPrefixMatrix(in_rank.data<uint8_t>(), in_rank.size(0), in_rank.size(1),
                                out.size(1), out.data<int32_t>());
  });
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "getDispatchLayout", GetDispatchLayout);
  Export(env, exports, "getRankPrefixMatrix", GetRankPrefixMatrix);
  Export(env, exports, "getChannelPrefixMatrix", GetChannelPrefixMatrix);
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_layout, Initialize)
