// Work that goes into a graph which the owner of a stream captures.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cuda/cuda_graph.h"
#include "cuda/cuda_recording.h"
#include "cuda/device.h"

namespace moe_ep::cuda {

// The capture that a stream is part of. No graph: it is part of none, or of one that is lost.
struct CaptureInfo {
  unsigned long long id = 0;
  cudaGraph_t graph = nullptr;
};
CaptureInfo CaptureOf(cudaStream_t stream);

// What the work uses. The graph holds it, and so does everything that its owner makes of the graph:
// it goes once those are destroyed and no launch of them runs any more.
class OwnersGraph {
 public:
  // Throws.
  static std::shared_ptr<OwnersGraph> Of(const CaptureInfo& capture, Device& device,
                                         std::shared_ptr<moe_ep_failure_record> failure,
                                         AbortPtr abort);
  ~OwnersGraph();
  OwnersGraph(const OwnersGraph&) = delete;
  OwnersGraph& operator=(const OwnersGraph&) = delete;

  unsigned long long id() const { return id_; }
  Scratch& scratch() { return scratch_; }
  void Keep(std::shared_ptr<const void> part) { parts_.push_back(std::move(part)); }
  void CallAtEnd(std::function<void()> then) { at_end_.push_back(std::move(then)); }

 private:
  OwnersGraph(unsigned long long id, Device& device);
  static void LetGo(void* held);

  const unsigned long long id_;
  Device& device_;
  Scratch scratch_;
  std::vector<std::shared_ptr<const void>> parts_;
  std::vector<std::function<void()>> at_end_;
};

}  // namespace moe_ep::cuda
