#include "cuda/owners_graph.h"

#include <utility>

#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

CaptureInfo CaptureOf(cudaStream_t stream) {
  CaptureInfo capture;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t result = cudaStreamGetCaptureInfo(stream, &status, &capture.id, &capture.graph);
  if (result != cudaSuccess) cudaGetLastError();
  if (result != cudaSuccess || status != cudaStreamCaptureStatusActive) return {};
  return capture;
}

OwnersGraph::OwnersGraph(unsigned long long id, Device& device)
    : id_(id), device_(device), scratch_(device) {}

OwnersGraph::~OwnersGraph() {
  for (const auto& then : at_end_) then();
}

std::shared_ptr<OwnersGraph> OwnersGraph::Of(const CaptureInfo& capture, Device& device,
                                             std::shared_ptr<moe_ep_failure_record> failure,
                                             AbortPtr abort) {
  std::shared_ptr<OwnersGraph> made(new OwnersGraph(capture.id, device));
  made->Keep(std::move(failure));
  made->Keep(std::move(abort));
  auto held = std::make_unique<std::shared_ptr<OwnersGraph>>(made);
  cudaUserObject_t object = nullptr;
  Check(cudaUserObjectCreate(&object, held.get(), LetGo, 1, cudaUserObjectNoDestructorSync),
        "cudaUserObjectCreate");
  held.release();  // the object's
  const cudaError_t status =
      cudaGraphRetainUserObject(capture.graph, object, 1, cudaGraphUserObjectMove);
  if (status != cudaSuccess) cudaUserObjectRelease(object, 1);
  Check(status, "cudaGraphRetainUserObject");
  return made;
}

// On a thread of the driver, which must not be called here.
void OwnersGraph::LetGo(void* held) {
  const std::unique_ptr<std::shared_ptr<OwnersGraph>> graph(
      static_cast<std::shared_ptr<OwnersGraph>*>(held));
  Device& device = (*graph)->device_;
  device.Retire([last = std::move(*graph)] {});
}

}  // namespace moe_ep::cuda
