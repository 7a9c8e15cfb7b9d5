// Graphs and plans: work that was recorded once.
#include <algorithm>
#include <chrono>

#include "binding/handles.h"
#include "runtime/device_work.h"

namespace moe_ep {
namespace {

const GraphHandle& GraphArgument(const Napi::Value& value) {
  const auto& graph = Unwrap<GraphHandle>(value, kGraphTag, "graph");
  if (graph == nullptr) Throw(value.Env(), "ERR_MOE_EP_RELEASED", "the graph was closed");
  return graph;
}

// Launches that are queued use what a graph holds. Those of the cpu hold the graph themselves.
void LetGo(GraphHandle graph) {
  if (graph == nullptr || graph->device_graph == nullptr) return;
  const int device = graph->device;
  RunWhenDeviceIsDone(device, [graph = std::move(graph)] {});
}

Napi::Value BeginCapture(const Napi::CallbackInfo& info) {
  Require(info.Env(), StreamArgument(info[0]).BeginCapture());
  return info.Env().Undefined();
}

Napi::Value EndCapture(const Napi::CallbackInfo& info) {
  auto graph = std::make_shared<Graph>();
  Require(info.Env(), StreamArgument(info[0]).EndCapture(graph.get()));
  return Wrap<GraphHandle>(info.Env(), kGraphTag, new GraphHandle(std::move(graph)),
                           [](Napi::Env, GraphHandle* held) {
                             LetGo(std::move(*held));
                             delete held;
                           });
}

Napi::Value GraphSize(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(GraphArgument(info[0])->steps.size()));
}

// Of the device, or the recorded commands on the cpu.
Napi::Value GraphOperations(const Napi::CallbackInfo& info) {
  const Graph& graph = *GraphArgument(info[0]);
  const size_t operations =
      graph.device_graph != nullptr
          ? graph.device_graph->operations()
          : static_cast<size_t>(
                std::count_if(graph.steps.begin(), graph.steps.end(),
                              [](const Graph::Step& step) { return step.command != nullptr; }));
  return Napi::Number::New(info.Env(), static_cast<double>(operations));
}

// graphLaunch(graph, stream)
Napi::Value GraphLaunch(const Napi::CallbackInfo& info) {
  const GraphHandle& graph = GraphArgument(info[0]);
  Require(info.Env(), StreamArgument(info[1]).Launch(graph));
  return info.Env().Undefined();
}

Napi::Value GraphClose(const Napi::CallbackInfo& info) {
  GraphHandle& graph = Unwrap<GraphHandle>(info[0], kGraphTag, "graph");
  if (graph == nullptr) return info.Env().Undefined();
  const int device = graph->device;
  LetGo(std::move(graph));
  // Nobody else may look for a long time, and what it holds may be much.
  if (device >= 0) LookWhatIsDone(device);
  return info.Env().Undefined();
}

const PlanHandle& PlanArgument(const Napi::Value& value) {
  const auto& plan = Unwrap<PlanHandle>(value, kPlanTag, "plan");
  if (plan == nullptr) Throw(value.Env(), "ERR_MOE_EP_RELEASED", "the plan was closed");
  return plan;
}

Napi::Value BeginPlan(const Napi::CallbackInfo& info) {
  Require(info.Env(), StreamArgument(info[0]).BeginPlan());
  return info.Env().Undefined();
}

Napi::Value EndPlan(const Napi::CallbackInfo& info) {
  auto plan = std::make_shared<Plan>();
  Require(info.Env(), StreamArgument(info[0]).EndPlan(plan.get()));
  return Wrap<PlanHandle>(info.Env(), kPlanTag, new PlanHandle(std::move(plan)),
                          [](Napi::Env, PlanHandle* held) { delete held; });
}

Napi::Value PlanSize(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(PlanArgument(info[0])->commands.size()));
}

// planLaunch(plan, stream)
Napi::Value PlanLaunch(const Napi::CallbackInfo& info) {
  const PlanHandle& plan = PlanArgument(info[0]);
  Require(info.Env(), StreamArgument(info[1]).Launch(*plan));
  return info.Env().Undefined();
}

// planLaunchTimes(plan, stream, count) -> nanoseconds that the host took: what launches cost
// without JavaScript.
Napi::Value PlanLaunchTimes(const Napi::CallbackInfo& info) {
  const PlanHandle& plan = PlanArgument(info[0]);
  Stream& stream = StreamArgument(info[1]);
  const int64_t count = info[2].As<Napi::Number>().Int64Value();
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) Require(info.Env(), stream.Launch(*plan));
  const std::chrono::nanoseconds time = std::chrono::steady_clock::now() - begin;
  return Napi::Number::New(info.Env(), static_cast<double>(time.count()));
}

Napi::Value PlanClose(const Napi::CallbackInfo& info) {
  Unwrap<PlanHandle>(info[0], kPlanTag, "plan").reset();
  return info.Env().Undefined();
}

}  // namespace

void RegisterGraph(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "beginCapture", BeginCapture);
  Export(env, exports, "endCapture", EndCapture);
  Export(env, exports, "graphSize", GraphSize);
  Export(env, exports, "graphOperations", GraphOperations);
  Export(env, exports, "graphLaunch", GraphLaunch);
  Export(env, exports, "graphClose", GraphClose);
  Export(env, exports, "beginPlan", BeginPlan);
  Export(env, exports, "endPlan", EndPlan);
  Export(env, exports, "planSize", PlanSize);
  Export(env, exports, "planLaunch", PlanLaunch);
  Export(env, exports, "planLaunchTimes", PlanLaunchTimes);
  Export(env, exports, "planClose", PlanClose);
}

}  // namespace moe_ep
