#include "cpu/kernels.h"
#include "moe_ep/transport/addon.h"
#if MOE_EP_CUDA
#include "cuda/kernels.h"
#define MOE_EP_ON_DEVICE(Operation, exec, call) \
  (exec.on_cuda() ? cuda::Operation(exec, call) : cpu::Operation(exec, call))
#else
#define MOE_EP_ON_DEVICE(Operation, exec, call) cpu::Operation(exec, call)
#endif

namespace moe_ep {
namespace {

constexpr napi_type_tag kBufferTag = {0x6d6f652d65700301, 0x7c1e52a94d0b86f3};

using BufferHandle = std::shared_ptr<Buffer>;

const BufferHandle& BufferArgument(const Arguments& args, size_t index) {
  Napi::Value value = args.value(index);
  bool same = false;
  if (value.IsExternal()) napi_check_object_type_tag(args.env(), value, &kBufferTag, &same);
  if (!same) Throw(args.env(), "ERR_MOE_EP_ARGUMENT", "expected a low-latency buffer handle");
  const BufferHandle& handle = *value.As<Napi::External<BufferHandle>>().Data();
  if (handle == nullptr) Throw(args.env(), "ERR_MOE_EP_RELEASED", "the buffer was closed");
  args.RequireDevice(handle->routes.device(), "low-latency buffer");
  return handle;
}

// createBuffer(routes, layout) -> buffer
Napi::Value CreateBuffer(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  auto buffer = std::make_shared<Buffer>();
  buffer->routes = RoutesArgument(args, 0);
  buffer->layout = FromNumbers<BufferLayout>(args, 1);
#if MOE_EP_CUDA
  if (buffer->routes.device() >= 0 && buffer->routes.world_size() > cuda::kMostRanks) {
    Throw(args.env(), "ERR_MOE_EP_UNSUPPORTED",
          "a low-latency buffer of a cuda device has at most " + std::to_string(cuda::kMostRanks) +
              " ranks");
  }
#endif
  buffer->slots = std::vector<SlotState>(static_cast<size_t>(buffer->layout.slots));
  Napi::Value external =
      Napi::External<BufferHandle>::New(args.env(), new BufferHandle(std::move(buffer)),
                                        [](Napi::Env, BufferHandle* held) { delete held; });
  napi_type_tag_object(args.env(), external, &kBufferTag);
  return external;
}

// closeBuffer(buffer): lets go of the mappings once queued work is done.
Napi::Value CloseBuffer(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  BufferArgument(args, 0);
  args.value(0).As<Napi::External<BufferHandle>>().Data()->reset();
  return args.env().Undefined();
}

// dispatchSend(stream, buffer, slot, sharedArguments, x, topkIdx, topkWeights, timeoutMs)
Napi::Value EnqueueDispatchSend(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const DispatchSendCall call{
      .buffer = BufferArgument(args, 1),
      .slot = args.integer(2),
      .arguments = FromNumbers<SharedArguments>(args, 3),
      .x = args.tensor(4),
      .topk_idx = args.tensor(5),
      .topk_weights = args.optional_tensor(6),
      .timeout_ms = args.integer(7),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(DispatchSend, exec, call); });
}

// dispatchReceive(stream, buffer, slot, sharedArguments, recvX, recvScales, recvCount, srcInfo,
//                 layoutRange, origins, numMessages, recvTopkIdx, recvTopkWeights, recvStats,
//                 waitStats, timeoutMs)
Napi::Value EnqueueDispatchReceive(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const DispatchReceiveCall call{
      .buffer = BufferArgument(args, 1),
      .slot = args.integer(2),
      .arguments = FromNumbers<SharedArguments>(args, 3),
      .recv_x = args.tensor(4),
      .recv_scales = args.optional_tensor(5),
      .recv_count = args.tensor(6),
      .src_info = args.tensor(7),
      .layout_range = args.optional_tensor(8),
      .received = {.origins = args.tensor(9), .num_messages = args.tensor(10)},
      .recv_topk_idx = args.optional_tensor(11),
      .recv_topk_weights = args.optional_tensor(12),
      .recv_stats = args.optional_tensor(13),
      .wait_stats = args.optional_tensor(14),
      .timeout_ms = args.integer(15),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(DispatchReceive, exec, call); });
}

// combineSend(stream, buffer, slot, weighted, rankMajor, x, origins, numMessages)
Napi::Value EnqueueCombineSend(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const CombineSendCall call{
      .buffer = BufferArgument(args, 1),
      .slot = args.integer(2),
      .weighted = args.boolean(3),
      .rank_major = args.boolean(4),
      .x = args.tensor(5),
      .received = {.origins = args.tensor(6), .num_messages = args.tensor(7)},
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(CombineSend, exec, call); });
}

// combineReceive(stream, buffer, slot, weighted, experts, topkIdx, topkWeights, out, waitStats,
//                timeoutMs)
Napi::Value EnqueueCombineReceive(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const CombineReceiveCall call{
      .buffer = BufferArgument(args, 1),
      .slot = args.integer(2),
      .weighted = args.boolean(3),
      .experts = args.integer(4),
      .topk_idx = args.tensor(5),
      .topk_weights = args.optional_tensor(6),
      .out = args.tensor(7),
      .wait_stats = args.optional_tensor(8),
      .timeout_ms = args.integer(9),
  };
  return Enqueue(args.env(), args.stream(0),
                 [call](const Exec& exec) { MOE_EP_ON_DEVICE(CombineReceive, exec, call); });
}

// messageBytes(hidden, topk), headerBytes(topk): sizes that layouts are made of.
Napi::Value MessageBytesOf(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  return Napi::Number::New(args.env(),
                           static_cast<double>(MessageBytes(args.integer(0), args.integer(1))));
}
Napi::Value HeaderBytesOf(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  return Napi::Number::New(args.env(), static_cast<double>(HeaderBytes(args.integer(0))));
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "createBuffer", CreateBuffer);
  Export(env, exports, "closeBuffer", CloseBuffer);
  Export(env, exports, "dispatchSend", EnqueueDispatchSend);
  Export(env, exports, "dispatchReceive", EnqueueDispatchReceive);
  Export(env, exports, "combineSend", EnqueueCombineSend);
  Export(env, exports, "combineReceive", EnqueueCombineReceive);
  Export(env, exports, "messageBytes", MessageBytesOf);
  Export(env, exports, "headerBytes", HeaderBytesOf);
  exports.Set("signalKinds", Napi::Number::New(env, static_cast<double>(kNumSignalKinds)));
  exports.Set("stateBytes", Napi::Number::New(env, sizeof(SlotState)));
  exports.Set("headBytes", Napi::Number::New(env, sizeof(DispatchHead)));
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_low_latency, Initialize)
