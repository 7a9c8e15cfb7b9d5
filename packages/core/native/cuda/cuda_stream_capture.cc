// Captures of a cuda stream: the runtime records, and events are what streams join by.
#include <exception>
#include <string>
#include <utility>

#include "cuda/cuda_stream.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

// Markers cannot be recorded while the stream is captured: this one stands for what came before.
// False where somebody else captures it.
bool CudaStream::EnterCapture(std::shared_ptr<CudaGraph> graph) {
  EventPtr marker;
  if (!Marker(&marker)) return false;
  graph->aborts.insert(abort_);
  std::lock_guard lock(marker_mutex_);
  captured_ = std::move(graph);
  return true;
}

void CudaStream::LeaveCapture() {
  std::lock_guard lock(marker_mutex_);
  captured_ = nullptr;
}

MaybeFailure CudaStream::CaptureBegun(Capture& capture) {
  try {
    device_.MakeCurrent();
    auto graph = std::make_shared<CudaGraph>(device_);
    if (!EnterCapture(graph)) return Misused("somebody else captures the stream");
    // Relaxed: making a tensor inside of a capture is allowed, as on the cpu.
    Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
    capture.device_graph = std::move(graph);
  } catch (const std::exception& error) {
    LeaveCapture();
    return Failure{"ERR_MOE_EP_INTERNAL", error.what()};
  }
  return std::nullopt;
}

MaybeFailure CudaStream::CaptureJoined(Capture& capture) {
  const auto graph = std::dynamic_pointer_cast<CudaGraph>(capture.device_graph);
  if (graph == nullptr || &graph->device() != &device_)
    return Misused("a stream of another device cannot join a capture");
  if (!EnterCapture(graph)) return Misused("somebody else captures the stream");
  return std::nullopt;
}

void CudaStream::CaptureRecord(Capture&, const std::shared_ptr<Event>& event, bool timed) {
  device_.MakeCurrent();
  EventPtr time;
  if (timed) {
    time = device_.NewEvent();
    Check(cudaEventRecordWithFlags(time.get(), stream_, cudaEventRecordExternal),
          "cudaEventRecordWithFlags");
  }
  captured_->times.emplace_back(event, std::move(time));
  // Behind the other one, which is work of the graph and has to be joined too.
  captured_->joins[event.get()] = RecordEvent();
}

void CudaStream::CaptureWait(Capture&, const std::shared_ptr<Event>& event) {
  device_.MakeCurrent();
  Check(cudaStreamWaitEvent(stream_, captured_->joins.at(event.get()).get(), 0),
        "cudaStreamWaitEvent");
}

MaybeFailure CudaStream::CaptureEnded(Capture& capture, bool valid) {
  device_.MakeCurrent();
  const std::shared_ptr<CudaGraph> captured = captured_;
  cudaGraph_t graph = nullptr;
  cudaError_t status = cudaStreamEndCapture(stream_, &graph);
  LeaveCapture();
  for (const std::shared_ptr<Stream>& joined : capture.joined())
    static_cast<CudaStream&>(*joined).LeaveCapture();
  captured->joins.clear();
  if (status == cudaSuccess && valid) {
    status = captured->Instantiate(graph);
    if (status == cudaSuccess) {
      cudaGraphUpload(captured->executable, device_.auxiliary());
      device_.CountAuxiliary();
    }
  }
  cudaGetLastError();
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (status == cudaSuccess || !valid) return std::nullopt;
  return Failure{"ERR_MOE_EP_CAPTURE",
                 std::string("the capture failed: ") + cudaGetErrorString(status)};
}

}  // namespace moe_ep::cuda
