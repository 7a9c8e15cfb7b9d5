// Captures of streams, and the graphs that come of them.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "../language/grid.h"
#include "software_cuda.h"

namespace software_cuda {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

// That go on.
std::vector<SessionPtr>& Sessions() {
  static auto* const sessions = new std::vector<SessionPtr>;
  return *sessions;
}

// Whether all work of the streams that joined comes before the end of the one that began.
bool Joined(const Session& session) {
  std::set<const Node*> before;
  std::vector<const Node*> open(session.origin->ends.begin(), session.origin->ends.end());
  while (!open.empty()) {
    const Node* const node = open.back();
    open.pop_back();
    if (before.insert(node).second) open.insert(open.end(), node->after.begin(), node->after.end());
  }
  return std::all_of(session.graph->nodes.begin(), session.graph->nodes.end(),
                     [&](const auto& node) { return before.contains(node.get()); });
}

}  // namespace

std::mutex& CaptureMutex() {
  static auto* const mutex = new std::mutex;
  return *mutex;
}

bool ForbiddenByCapture() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  bool forbidden = false;
  for (const SessionPtr& session : Sessions()) {
    const bool own = session->thread == std::this_thread::get_id();
    const bool reaches = session->mode == cudaStreamCaptureModeGlobal
                             ? own || thread_mode == cudaStreamCaptureModeGlobal
                             : own && session->mode == cudaStreamCaptureModeThreadLocal;
    if (!reaches) continue;
    session->valid = false;
    forbidden = true;
  }
  return forbidden;
}

cudaError_t Refuse(Session& session) {
  session.valid = false;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t Submit(cudaStream_t handle, cudaGraphNodeType type, std::function<void()> work) {
  CUstream_st& stream = StreamOf(handle);
  std::lock_guard lock(CaptureMutex());
  if (stream.session == nullptr) {
    stream.Push(std::move(work));
    return cudaSuccess;
  }
  return AddNode(stream, type, std::move(work), nullptr);
}

cudaError_t AddNode(CUstream_st& stream, cudaGraphNodeType type, std::function<void()> work,
                    cudaEvent_t event) {
  if (!stream.session->valid) return cudaErrorStreamCaptureInvalidated;
  CUgraph_st& graph = *stream.session->graph;
  graph.nodes.push_back(std::make_unique<Node>(Node{type, std::move(work), event, stream.ends}));
  stream.ends = {graph.nodes.back().get()};
  return cudaSuccess;
}

}  // namespace software_cuda

using software_cuda::Call;
using software_cuda::CaptureMutex;
using software_cuda::MomentPtr;
using software_cuda::Node;
using software_cuda::SessionPtr;
using software_cuda::StreamOf;

struct CUgraphExec_st {
  struct Step {
    cudaGraphNodeType type;
    std::function<void()> work;
    cudaEvent_t event;
    std::vector<size_t> after;
  };
  // Launches that are queued keep both.
  std::shared_ptr<const std::vector<Step>> steps;
  std::vector<std::shared_ptr<void>> objects;
  MomentPtr last;  // end of its newest launch; with the mutex of captures
  bool destroyed = false;
};

namespace {

// Whoever lets go of the last one does not wait, and the user's function may not call the runtime.
void LetGo(cudaUserObject_t object, unsigned count) {
  const unsigned before = object->references.fetch_sub(count);
  if (before < count) software_cuda::Misuse("more of a user object is released than was held");
  if (before > count) return;
  std::thread([object] {
    const software_cuda::InHostFunction inside;
    object->destroy(object->held);
    delete object;
  }).detach();
}

void RunStep(const CUgraphExec_st::Step& step, const MomentPtr& moment) {
  if (step.type == cudaGraphNodeTypeEventRecord) {
    moment->Finish();
  } else if (step.type == cudaGraphNodeTypeWaitEvent) {
    if (moment != nullptr) moment->Wait();
  } else {
    step.work();
  }
}

void RunSteps(const std::vector<CUgraphExec_st::Step>& steps,
              const std::vector<MomentPtr>& moments) {
  std::vector<std::vector<size_t>> then(steps.size());
  std::vector<size_t> awaited(steps.size());
  std::vector<size_t> ready;
  for (size_t i = 0; i < steps.size(); ++i) {
    for (const size_t before : steps[i].after) then[before].push_back(i);
    awaited[i] = steps[i].after.size();
    if (awaited[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[software_cuda::Draw() % ready.size()], ready.back());
    const size_t step = ready.back();
    ready.pop_back();
    RunStep(steps[step], moments[step]);
    for (const size_t next : then[step]) {
      if (--awaited[next] == 0) ready.push_back(next);
    }
  }
}

}  // namespace

extern "C" {

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const Call call("cudaThreadExchangeStreamCaptureMode");
  std::swap(*mode, software_cuda::thread_mode);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  const Call call("cudaStreamBeginCapture");
  if (handle == nullptr) return call.End(cudaErrorStreamCaptureUnsupported);
  CUstream_st& stream = StreamOf(handle);
  std::lock_guard lock(CaptureMutex());
  if (stream.session != nullptr) return call.End(cudaErrorIllegalState);
  static unsigned long long sessions = 0;
  stream.session = std::make_shared<software_cuda::Session>(software_cuda::Session{
      mode, std::this_thread::get_id(), handle, ++sessions, std::make_unique<CUgraph_st>()});
  stream.ends.clear();
  software_cuda::Sessions().push_back(stream.session);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  const Call call("cudaStreamEndCapture");
  *graph = nullptr;
  CUstream_st& stream = StreamOf(handle);
  std::lock_guard lock(CaptureMutex());
  const SessionPtr session = stream.session;
  if (session == nullptr || session->origin != handle)
    return call.End(cudaErrorStreamCaptureUnmatched);
  if (session->mode != cudaStreamCaptureModeRelaxed &&
      session->thread != std::this_thread::get_id())
    return call.End(cudaErrorStreamCaptureWrongThread);
  const bool joined = software_cuda::Joined(*session);
  for (CUstream_st* const captured : software_cuda::AllStreams()) {
    if (captured->session != session) continue;
    captured->session = nullptr;
    captured->ends.clear();
  }
  stream.session = nullptr;
  std::erase(software_cuda::Sessions(), session);
  session->ended = true;
  if (!session->valid) return call.End(cudaErrorStreamCaptureInvalidated);
  if (!joined) return call.End(cudaErrorStreamCaptureUnjoined);
  *graph = session->graph.release();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  const Call call("cudaStreamIsCapturing");
  CUstream_st& stream = StreamOf(handle);
  std::lock_guard lock(CaptureMutex());
  *status = stream.session == nullptr ? cudaStreamCaptureStatusNone
            : stream.session->valid   ? cudaStreamCaptureStatusActive
                                      : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  const Call call("cudaStreamGetCaptureInfo");
  const cudaError_t result = cudaStreamIsCapturing(handle, status);
  std::lock_guard lock(CaptureMutex());
  if (const SessionPtr session = StreamOf(handle).session; session != nullptr && session->valid) {
    *id = session->id;
    *graph = session->graph.get();
  }
  return call.End(result);
}

cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* held, cudaHostFn_t destroy,
                                 unsigned references, unsigned flags) {
  const Call call("cudaUserObjectCreate");
  if (references == 0 || flags != cudaUserObjectNoDestructorSync)
    return call.End(cudaErrorInvalidValue);
  *object = new CUuserObject_st{held, destroy, references};
  return cudaSuccess;
}

cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) {
  const Call call("cudaUserObjectRelease");
  LetGo(object, count);
  return cudaSuccess;
}

cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned count,
                                      unsigned flags) {
  const Call call("cudaGraphRetainUserObject");
  if (flags != cudaGraphUserObjectMove) object->references += count;
  std::lock_guard lock(CaptureMutex());
  graph->objects.emplace_back(object, [count](CUuserObject_st* kept) { LetGo(kept, count); });
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const Call call("cudaGraphGetNodes");
  if (nodes != nullptr) {
    *count = std::min(*count, graph->nodes.size());
    for (size_t i = 0; i < *count; ++i) nodes[i] = graph->nodes[i].get();
  } else {
    *count = graph->nodes.size();
  }
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  const Call call("cudaGraphNodeGetType");
  *type = node->type;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Call call("cudaGraphDestroy");
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  const Call call("cudaGraphInstantiate");
  auto steps = std::make_shared<std::vector<CUgraphExec_st::Step>>();
  std::map<const Node*, size_t> numbers;
  for (const auto& node : graph->nodes) {
    numbers[node.get()] = steps->size();
    steps->push_back({node->type, node->work, node->event, {}});
    for (const Node* const before : node->after) steps->back().after.push_back(numbers.at(before));
  }
  *executable = new CUgraphExec_st{std::move(steps), graph->objects, nullptr};
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t) {
  const Call call("cudaGraphUpload");
  if (executable->destroyed) software_cuda::Misuse("a graph is uploaded after it was destroyed");
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Call call("cudaGraphExecDestroy");
  std::lock_guard lock(CaptureMutex());
  if (std::exchange(executable->destroyed, true))
    software_cuda::Misuse("a graph is destroyed twice");
  executable->steps = nullptr;
  executable->objects.clear();
  return cudaSuccess;
}

// One step at a time, in an order of the moment that the graph allows, and one launch of a graph
// after the other.
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  const Call call("cudaGraphLaunch");
  CUstream_st& stream = StreamOf(handle);
  std::lock_guard lock(CaptureMutex());
  if (executable->destroyed) software_cuda::Misuse("a graph is launched after it was destroyed");
  if (stream.session != nullptr) return call.End(Refuse(*stream.session));
  const std::vector<CUgraphExec_st::Step>& steps = *executable->steps;
  std::vector<MomentPtr> moments(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].type == cudaGraphNodeTypeWaitEvent) moments[i] = steps[i].event->moment;
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].type != cudaGraphNodeTypeEventRecord) continue;
    moments[i] = std::make_shared<software_cuda::Moment>();
    steps[i].event->moment = moments[i];
    steps[i].event->session = nullptr;
  }
  const MomentPtr before = executable->last;
  const MomentPtr end = executable->last = std::make_shared<software_cuda::Moment>();
  stream.Push([steps = executable->steps, objects = executable->objects,
               moments = std::move(moments), before, end] {
    if (before != nullptr) before->Wait();
    RunSteps(*steps, moments);
    end->Finish();
  });
  return cudaSuccess;
}

}  // extern "C"
