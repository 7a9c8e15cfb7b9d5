#include "cpu/kernels.h"
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

constexpr BufferHandles<Buffer> kBuffers({0x6d6f652d65700301, 0x7c1e52a94d0b86f3}, "a",
                                         "low-latency buffer");

// createBuffer(routes, layout, masksLate) -> buffer
Napi::Value CreateBuffer(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto buffer = kBuffers.Make(args);
#if MOE_EP_CUDA
  if (buffer->routes.device() >= 0) kBuffers.RequireMostRanks(args, *buffer, cuda::kMostRanks);
#endif
  buffer->masks_late = args.boolean(2);
  buffer->slots = std::vector<SlotState>(static_cast<size_t>(buffer->layout.slots));
  return kBuffers.ToJs(args.env(), buffer);
}

// closeBuffer(buffer)
Napi::Value CloseBuffer(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  kBuffers.Close(args, 0);
  return args.env().Undefined();
}

Phases PhasesArgument(const Arguments& args, size_t index) {
  const int64_t bits = args.integer(index);
  return {.send = (bits & 1) != 0, .receive = (bits & 2) != 0};
}

// dispatch(stream, buffer, slot, phases, sharedArguments, timeoutMs, sms, x, topkIdx, topkWeights,
//          xGlobalScale, recvX, recvScales, recvCount, srcInfo, layoutRange, rows, messages, first,
//          recvTopkIdx, recvTopkWeights, recvStats, waitStats)
Napi::Value EnqueueDispatch(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const DispatchCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .phases = PhasesArgument(args, 3),
      .arguments = FromNumbers<SharedArguments>(args, 4),
      .timeout_ms = args.integer(5),
      .sms = args.integer(6),
      .refusal = 0,
      .x = args.tensor(7),
      .topk_idx = args.tensor(8),
      .topk_weights = args.optional_tensor(9),
      .global_scale = args.optional_tensor(10),
      .recv_x = args.tensor(11),
      .recv_scales = args.optional_tensor(12),
      .recv_count = args.tensor(13),
      .src_info = args.tensor(14),
      .layout_range = args.optional_tensor(15),
      .received = {.rows = args.tensor(16), .messages = args.tensor(17), .first = args.tensor(18)},
      .recv_topk_idx = args.optional_tensor(19),
      .recv_topk_weights = args.optional_tensor(20),
      .recv_stats = args.optional_tensor(21),
      .wait_stats = args.optional_tensor(22),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(Dispatch, exec, call); });
}

// refuseDispatch(stream, buffer, slot, code, timeoutMs): a send phase without rows.
Napi::Value EnqueueRefuseDispatch(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  DispatchCall call = {};
  call.buffer = kBuffers.Argument(args, 1);
  call.slot = args.integer(2);
  call.phases = {.send = true, .receive = false};
  // Ranks that hear of a refusal look at no arguments.
  call.arguments.hidden = call.buffer->layout.max_hidden;
  call.refusal = RefusalNumber(args.text(3));
  call.timeout_ms = args.integer(4);
  call.sms = 1;
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(Dispatch, exec, call); });
}

// combine(stream, buffer, slot, phases, weighted, rankMajor, logfmt, experts, timeoutMs, sms, x,
//         rows, messages, first, topkIdx, topkWeights, out, waitStats)
Napi::Value EnqueueCombine(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const CombineCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .phases = PhasesArgument(args, 3),
      .weighted = args.boolean(4),
      .rank_major = args.boolean(5),
      .logfmt = args.boolean(6),
      .experts = args.integer(7),
      .timeout_ms = args.integer(8),
      .sms = args.integer(9),
      .x = args.tensor(10),
      .received = {.rows = args.tensor(11), .messages = args.tensor(12), .first = args.tensor(13)},
      .topk_idx = args.tensor(14),
      .topk_weights = args.optional_tensor(15),
      .out = args.tensor(16),
      .wait_stats = args.optional_tensor(17),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(Combine, exec, call); });
}

// refuseCombine(stream, buffer, slot, code)
Napi::Value EnqueueRefuseCombine(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const RefuseCombineCall call{
      .buffer = kBuffers.Argument(args, 1),
      .slot = args.integer(2),
      .note = kRefusal + RefusalNumber(args.text(3)),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(RefuseCombine, exec, call); });
}

// updateMask(stream, buffer, rank, masks): of one rank, or of all for -1.
Napi::Value EnqueueUpdateMask(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto rank = static_cast<int>(args.integer(2));
  const UpdateMaskCall call{
      .buffer = kBuffers.Argument(args, 1),
      .ranks = rank < 0 ? ~RankBits{0} : BitOf(rank),
      .masks = args.boolean(3),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(UpdateMask, exec, call); });
}

// queryMask(stream, buffer, out)
Napi::Value EnqueueQueryMask(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const QueryMaskCall call{.buffer = kBuffers.Argument(args, 1), .out = args.tensor(2)};
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(QueryMask, exec, call); });
}

// messageBytes(hidden), paddedTopk(topk): sizes that layouts are made of.
Napi::Value MessageBytesOf(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  return Napi::Number::New(args.env(), static_cast<double>(MessageBytes(args.integer(0))));
}
Napi::Value PaddedTopkOf(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  return Napi::Number::New(args.env(), static_cast<double>(PaddedTopk(args.integer(0))));
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "createBuffer", CreateBuffer);
  Export(env, exports, "closeBuffer", CloseBuffer);
  Export(env, exports, "dispatch", EnqueueDispatch);
  Export(env, exports, "refuseDispatch", EnqueueRefuseDispatch);
  Export(env, exports, "combine", EnqueueCombine);
  Export(env, exports, "refuseCombine", EnqueueRefuseCombine);
  Export(env, exports, "updateMask", EnqueueUpdateMask);
  Export(env, exports, "queryMask", EnqueueQueryMask);
  Export(env, exports, "messageBytes", MessageBytesOf);
  Export(env, exports, "paddedTopk", PaddedTopkOf);
  exports.Set("maskArgument", Napi::String::New(env, kSharedArgumentNames[kMaskArgument]));
  exports.Set("signalKinds", Napi::Number::New(env, static_cast<double>(kNumSignalKinds)));
  exports.Set("stateBytes", Napi::Number::New(env, sizeof(DeviceState)));
  exports.Set("headBytes", Napi::Number::New(env, sizeof(DispatchHead)));
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_low_latency, Initialize)
