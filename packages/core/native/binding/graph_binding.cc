// Graph capture and replay.
#include "binding/handles.h"

namespace moe_ep {
namespace {

const GraphHandle& GraphArgument(const Napi::Value& value) {
  const auto& graph = Unwrap<GraphHandle>(value, kGraphTag, "graph");
  if (graph == nullptr) Throw(value.Env(), "ERR_MOE_EP_RELEASED", "the graph was closed");
  return graph;
}

Napi::Value BeginCapture(const Napi::CallbackInfo& info) {
  Require(info.Env(), StreamArgument(info[0]).BeginCapture());
  return info.Env().Undefined();
}

Napi::Value EndCapture(const Napi::CallbackInfo& info) {
  auto graph = std::make_shared<Graph>();
  Require(info.Env(), StreamArgument(info[0]).EndCapture(graph.get()));
  return Wrap<GraphHandle>(info.Env(), kGraphTag, new GraphHandle(std::move(graph)),
                           [](Napi::Env, GraphHandle* held) { delete held; });
}

Napi::Value GraphSize(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(GraphArgument(info[0])->steps.size()));
}

// graphLaunch(graph, stream)
Napi::Value GraphLaunch(const Napi::CallbackInfo& info) {
  const GraphHandle& graph = GraphArgument(info[0]);
  Require(info.Env(), StreamArgument(info[1]).Launch(graph));
  return info.Env().Undefined();
}

// Launches that are queued keep what they need.
Napi::Value GraphClose(const Napi::CallbackInfo& info) {
  Unwrap<GraphHandle>(info[0], kGraphTag, "graph").reset();
  return info.Env().Undefined();
}

}  // namespace

void RegisterGraph(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "beginCapture", BeginCapture);
  Export(env, exports, "endCapture", EndCapture);
  Export(env, exports, "graphSize", GraphSize);
  Export(env, exports, "graphLaunch", GraphLaunch);
  Export(env, exports, "graphClose", GraphClose);
}

}  // namespace moe_ep
