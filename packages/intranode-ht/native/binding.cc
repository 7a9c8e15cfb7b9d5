#include "cpu/combine.h"
#include "cpu/combine_grouped.h"
#include "cpu/meet_for_combine.h"
#include "cpu/notify.h"
#include "cpu/refuse.h"
#include "cpu/send.h"
#include "cpu/send_grouped.h"
#include "moe_ep/transport/buffer_handle.h"
#if MOE_EP_CUDA
#include "cuda/kernels.h"
#define MOE_EP_ON_DEVICE(Operation, exec, call) \
  (exec.on_cuda() ? cuda::Operation(exec, call) : cpu::Operation(exec, call))
#else
#define MOE_EP_ON_DEVICE(Operation, exec, call) cpu::Operation(exec, call)
#endif

namespace moe_ep {
namespace {

constexpr BufferHandles<Buffer> kBuffers({0x6d6f652d65700201, 0x2f6ad17ce0b34f11}, "an",
                                         "intranode buffer");

// createBuffer(routes, layout) -> buffer
Napi::Value CreateBuffer(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto buffer = kBuffers.Make(args);
#if MOE_EP_CUDA
  if (buffer->routes.device() >= 0) {
    kBuffers.RequireMostRanks(args, *buffer, cuda::MostRanks());
    cuda::PrepareDevice(buffer->routes.device());
  }
#endif
  buffer->slots = std::vector<SlotState>(static_cast<size_t>(buffer->layout.slots));
  return kBuffers.ToJs(args.env(), buffer);
}

// closeBuffer(buffer)
Napi::Value CloseBuffer(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  kBuffers.Close(args, 0);
  return args.env().Undefined();
}

// notify(stream, buffer, slot, sharedArguments, topkIdx, [outputs in order of NotifyOutputs], room,
// timeoutMs)
Napi::Value Notify(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const NotifyCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .arguments = FromNumbers<SharedArguments>(args, 3),
      .topk_idx = args.tensor(4),
      .out = {.num_tokens_per_rank = args.tensor(5),
              .num_tokens_per_expert = args.tensor(6),
              .is_token_in_rank = args.tensor(7),
              .rank_prefix_matrix = args.tensor(8),
              .channel_prefix_matrix = args.tensor(9),
              .recv_channel_prefix_matrix = args.tensor(10),
              .send_head = args.tensor(11),
              .num_recv_tokens_per_expert = args.tensor(12),
              .num_recv_selections = args.tensor(13),
              .slot_row = args.optional_tensor(14),
              .host_counts = args.optional_host_tensor(15)},
      .room = args.integer(16),
      .timeout_ms = args.integer(17),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(Notify, exec, call); });
}

// notifyCached(stream, buffer, slot, sharedArguments, rankPrefixMatrix, tokens, timeoutMs)
Napi::Value NotifyCached(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const NotifyCachedCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .arguments = FromNumbers<SharedArguments>(args, 3),
      .rank_prefix_matrix = args.tensor(4),
      .tokens = args.integer(5),
      .timeout_ms = args.integer(6),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(NotifyCached, exec, call); });
}

// send(stream, buffer, slot, experts, x, scales, topkIdx, topkWeights, sendHead, numTokensPerRank,
// rankPrefixMatrix,
//      fillTail, timeoutMs, sms)
Napi::Value Send(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const SendCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .experts = args.integer(3),
      .x = args.tensor(4),
      .scales = args.optional_tensor(5),
      .topk_idx = args.optional_tensor(6),
      .topk_weights = args.optional_tensor(7),
      .send_head = args.tensor(8),
      .num_tokens_per_rank = args.tensor(9),
      .rank_prefix_matrix = args.tensor(10),
      .fill_tail = args.boolean(11),
      .timeout_ms = args.integer(12),
      .sms = args.integer(13),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(Send, exec, call); });
}

// sendGrouped(stream, buffer, slot, experts, alignment, fillWithExpert, zeroPadding, x, scales,
// topkIdx, slotRow,
//             numRecvSelections, timeoutMs, sms)
Napi::Value SendGrouped(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const SendGroupedCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .experts = args.integer(3),
      .alignment = args.integer(4),
      .fill_with_expert = args.boolean(5),
      .zero_padding = args.boolean(6),
      .x = args.tensor(7),
      .scales = args.optional_tensor(8),
      .topk_idx = args.tensor(9),
      .slot_row = args.tensor(10),
      .num_recv_selections = args.tensor(11),
      .timeout_ms = args.integer(12),
      .sms = args.integer(13),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(SendGrouped, exec, call); });
}

// combine(stream, buffer, slot, x, topkWeights, rankPrefixMatrix, sendHead, bias0, bias1, out,
//         outTopkWeights, timeoutMs, sms)
Napi::Value Combine(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const CombineCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .x = args.tensor(3),
      .topk_weights = args.optional_tensor(4),
      .rank_prefix_matrix = args.tensor(5),
      .send_head = args.tensor(6),
      .bias = {args.optional_tensor(7), args.optional_tensor(8)},
      .out = args.tensor(9),
      .out_topk_weights = args.optional_tensor(10),
      .timeout_ms = args.integer(11),
      .sms = args.integer(12),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(Combine, exec, call); });
}

// combineGrouped(stream, buffer, slot, experts, x, topkIdx, topkWeights, slotRow,
//                numRecvTokensPerExpert, out, timeoutMs, sms)
Napi::Value CombineGrouped(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const CombineGroupedCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .experts = args.integer(3),
      .x = args.tensor(4),
      .topk_idx = args.tensor(5),
      .topk_weights = args.tensor(6),
      .slot_row = args.tensor(7),
      .num_recv_tokens_per_expert = args.tensor(8),
      .out = args.tensor(9),
      .timeout_ms = args.integer(10),
      .sms = args.integer(11),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(CombineGrouped, exec, call); });
}

// refuseDispatch(stream, buffer, call, code, words, timeoutMs)
Napi::Value RefuseDispatch(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const RefuseDispatchCall call{
      .buffer = kBuffers.Argument(args, 1),
      .call = args.integer(2),
      .refusal = MakeRefusal(args.text(3), args.text(4)),
      .timeout_ms = args.integer(5),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(RefuseDispatch, exec, call); });
}

// refuseCombine(stream, buffer, slot, code, words)
Napi::Value RefuseCombine(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const RefuseCombineCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .refusal = MakeRefusal(args.text(3), args.text(4)),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(RefuseCombine, exec, call); });
}

// copyRows(stream, from, to): the first rows of `from`, as many as `to` has.
Napi::Value CopyRows(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Tensor from = args.tensor(1);
  const Tensor to = args.tensor(2);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const int64_t bytes = to.numel() * BitsOf(to.dtype()) / 8;
#if MOE_EP_CUDA
    if (exec.on_cuda()) return cuda::CopyBytes(exec, from.data(), to.data(), bytes);
#endif
    cpu::StageBytes(exec, from.data<uint8_t>(), to.data<uint8_t>(), bytes);
  });
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "createBuffer", CreateBuffer);
  Export(env, exports, "closeBuffer", CloseBuffer);
  Export(env, exports, "notify", Notify);
  Export(env, exports, "notifyCached", NotifyCached);
  Export(env, exports, "send", Send);
  Export(env, exports, "sendGrouped", SendGrouped);
  Export(env, exports, "combine", Combine);
  Export(env, exports, "combineGrouped", CombineGrouped);
  Export(env, exports, "refuseDispatch", RefuseDispatch);
  Export(env, exports, "refuseCombine", RefuseCombine);
  Export(env, exports, "copyRows", CopyRows);
  exports.Set("signalKinds", Napi::Number::New(env, static_cast<double>(kNumSignalKinds)));
  exports.Set("messageHeadBytes", Napi::Number::New(env, sizeof(MessageHead)));
  exports.Set("combineHeadBytes", Napi::Number::New(env, sizeof(CombineHead)));
  exports.Set("slotEpochsBytes", Napi::Number::New(env, sizeof(SlotEpochs)));
  exports.Set("runTokens", Napi::Number::New(env, static_cast<double>(kRunTokens)));
  exports.Set("placesBytes", Napi::Number::New(env, static_cast<double>(TokenPlaces::Bytes(1))));
  exports.Set("refusalSignals", Napi::Number::New(env, static_cast<double>(kRefusalSignals)));
  exports.Set("refusalWordBytes", Napi::Number::New(env, sizeof(Refusal::words) - 1));
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_intranode_ht, Initialize)
