// Graph capture and replay.
#include "binding/handles.h"

namespace moe_ep {
namespace {

Stream& StreamArgument(const Napi::Value& value) { return *Unwrap<StreamHandle>(value, kStreamTag, "stream"); }

Napi::Value BeginCapture(const Napi::CallbackInfo& info) {
  const char* reason = StreamArgument(info[0]).BeginCapture();
  if (reason != nullptr) Throw(info.Env(), "ERR_MOE_EP_CAPTURE", reason);
  return info.Env().Undefined();
}

Napi::Value EndCapture(const Napi::CallbackInfo& info) {
  auto graph = std::make_shared<Graph>();
  const char* reason = StreamArgument(info[0]).EndCapture(graph.get());
  if (reason != nullptr) Throw(info.Env(), "ERR_MOE_EP_CAPTURE", reason);
  return Wrap<GraphHandle>(info.Env(), kGraphTag, new GraphHandle(std::move(graph)), [](GraphHandle* held) { delete held; });
}

Napi::Value GraphSize(const Napi::CallbackInfo& info) {
  const auto& graph = Unwrap<GraphHandle>(info[0], kGraphTag, "graph");
  return Napi::Number::New(info.Env(), static_cast<double>(graph->commands.size()));
}

// graphLaunch(graph, stream)
Napi::Value GraphLaunch(const Napi::CallbackInfo& info) {
  Stream& stream = StreamArgument(info[1]);
  if (stream.capturing()) Throw(info.Env(), "ERR_MOE_EP_CAPTURE", "a graph cannot be launched into a capture");
  if (!stream.Launch(Unwrap<GraphHandle>(info[0], kGraphTag, "graph"))) {
    Throw(info.Env(), "ERR_MOE_EP_RELEASED", "the stream was closed");
  }
  return info.Env().Undefined();
}

}  // namespace

void RegisterGraph(Napi::Env env, Napi::Object exports) {
  exports.Set("beginCapture", Napi::Function::New(env, BeginCapture));
  exports.Set("endCapture", Napi::Function::New(env, EndCapture));
  exports.Set("graphSize", Napi::Function::New(env, GraphSize));
  exports.Set("graphLaunch", Napi::Function::New(env, GraphLaunch));
}

}  // namespace moe_ep
