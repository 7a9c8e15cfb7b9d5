#include "cpu/combine.h"
#include "cpu/notify.h"
#include "cpu/send.h"
#include "moe_ep/transport/addon.h"

namespace moe_ep {
namespace {

constexpr napi_type_tag kBufferTag = {0x6d6f652d65700201, 0x2f6ad17ce0b34f11};

using BufferHandle = std::shared_ptr<cpu::Buffer>;

const BufferHandle& BufferArgument(const Arguments& args, size_t index) {
  Napi::Value value = args.value(index);
  bool same = false;
  if (value.IsExternal()) napi_check_object_type_tag(args.env(), value, &kBufferTag, &same);
  if (!same) Throw(args.env(), "ERR_MOE_EP_ARGUMENT", "expected an intranode buffer handle");
  const BufferHandle& handle = *value.As<Napi::External<BufferHandle>>().Data();
  if (handle == nullptr) Throw(args.env(), "ERR_MOE_EP_RELEASED", "the buffer was closed");
  return handle;
}

// Fields of a plain struct of i64, in order, from an array of numbers.
template <typename Struct>
Struct FromNumbers(const Arguments& args, size_t index) {
  const auto numbers = args.value(index).As<Napi::Array>();
  if (numbers.Length() * sizeof(int64_t) != sizeof(Struct)) {
    Throw(args.env(), "ERR_MOE_EP_INTERNAL", "native and JavaScript disagree about a record");
  }
  Struct result;
  for (uint32_t i = 0; i < numbers.Length(); ++i) {
    reinterpret_cast<int64_t*>(&result)[i] = numbers.Get(i).As<Napi::Number>().Int64Value();
  }
  return result;
}

// createBuffer(routes, layout) -> buffer
Napi::Value CreateBuffer(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  auto buffer = std::make_shared<cpu::Buffer>();
  buffer->routes = RoutesArgument(args, 0);
  buffer->layout = FromNumbers<cpu::BufferLayout>(args, 1);
  buffer->slots.resize(static_cast<size_t>(buffer->layout.slots));
  Napi::Value external = Napi::External<BufferHandle>::New(args.env(), new BufferHandle(std::move(buffer)),
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

// notify(stream, buffer, slot, sharedArguments, topkIdx, [outputs in order of NotifyOutputs], timeoutMs)
Napi::Value Notify(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const cpu::NotifyCall call{
      .buffer = BufferArgument(args, 1),
      .slot = args.integer(2),
      .arguments = FromNumbers<cpu::SharedArguments>(args, 3),
      .topk_idx = args.tensor(4),
      .out = {.num_tokens_per_rank = args.tensor(5),
              .num_tokens_per_expert = args.tensor(6),
              .is_token_in_rank = args.tensor(7),
              .rank_prefix_matrix = args.tensor(8),
              .channel_prefix_matrix = args.tensor(9),
              .recv_channel_prefix_matrix = args.tensor(10),
              .send_head = args.tensor(11),
              .num_recv_tokens_per_expert = args.tensor(12)},
      .timeout_ms = args.integer(13),
  };
  return Enqueue(args.env(), args.stream(0), [call](const Exec& exec) { cpu::Notify(exec, call); });
}

// notifyCached(stream, buffer, slot, sharedArguments, timeoutMs)
Napi::Value NotifyCached(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const BufferHandle buffer = BufferArgument(args, 1);
  const int64_t slot = args.integer(2);
  const auto arguments = FromNumbers<cpu::SharedArguments>(args, 3);
  const int64_t timeout_ms = args.integer(4);
  return Enqueue(args.env(), args.stream(0),
                 [=](const Exec& exec) { cpu::NotifyCached(exec, buffer, slot, arguments, timeout_ms); });
}

// send(stream, buffer, slot, experts, x, scales, topkIdx, topkWeights, sendHead, timeoutMs)
Napi::Value Send(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const cpu::SendCall call{
      .buffer = BufferArgument(args, 1),
      .slot = args.integer(2),
      .experts = args.integer(3),
      .x = args.tensor(4),
      .scales = args.optional_tensor(5),
      .topk_idx = args.optional_tensor(6),
      .topk_weights = args.optional_tensor(7),
      .send_head = args.tensor(8),
      .timeout_ms = args.integer(9),
  };
  return Enqueue(args.env(), args.stream(0), [call](const Exec& exec) { cpu::Send(exec, call); });
}

// combine(stream, buffer, slot, x, numTokensPerRank, sendHead, out, timeoutMs)
Napi::Value Combine(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const cpu::CombineCall call{
      .buffer = BufferArgument(args, 1),
      .slot = args.integer(2),
      .x = args.tensor(3),
      .num_tokens_per_rank = args.tensor(4),
      .send_head = args.tensor(5),
      .out = args.tensor(6),
      .timeout_ms = args.integer(7),
  };
  return Enqueue(args.env(), args.stream(0), [call](const Exec& exec) { cpu::Combine(exec, call); });
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "createBuffer", CreateBuffer);
  Export(env, exports, "closeBuffer", CloseBuffer);
  Export(env, exports, "notify", Notify);
  Export(env, exports, "notifyCached", NotifyCached);
  Export(env, exports, "send", Send);
  Export(env, exports, "combine", Combine);
  exports.Set("signalKinds", Napi::Number::New(env, static_cast<double>(cpu::kNumSignalKinds)));
  exports.Set("sharedArgumentBytes", Napi::Number::New(env, sizeof(cpu::SharedArguments)));
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_intranode_ht, Initialize)
