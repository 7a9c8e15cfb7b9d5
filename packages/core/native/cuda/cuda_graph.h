// What a cuda device makes of a captured list: a graph of the runtime, and the memory that its
// kernels use.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/cuda_recording.h"
#include "cuda/device.h"
#include "moe_ep/abi.h"
#include "runtime/graph.h"

namespace moe_ep::cuda {

// Device memory that one user's commands hand from launch to launch; see moe_ep_core_api.
class Scratch {
 public:
  explicit Scratch(Device& device) : device_(device) {}
  ~Scratch();
  // Null when there is no memory.
  void* Get(uint64_t key, uint64_t bytes);

 private:
  struct Part {
    void* memory;
    uint64_t bytes;
  };
  Device& device_;
  std::map<uint64_t, Part> parts_;
  std::vector<void*> outgrown_;  // captured work may still use it
};

class CudaGraph final : public DeviceGraph {
 public:
  explicit CudaGraph(Device& device);
  ~CudaGraph() override;  // what is launched still runs

  size_t operations() const override { return operations_; }
  // Makes the executable of a finished capture, and counts.
  cudaError_t Instantiate(cudaGraph_t graph);

  Device& device() const { return device_; }
  moe_ep_failure_record* failure() const { return failure_; }
  Scratch& ScratchOf(const Stream* stream);
  bool may_fail = false;
  // Called once no launch of it runs any more.
  std::vector<std::function<void()>> at_end;

  // Of the streams that were captured: kernels of the graph look at their words.
  Aborts aborts;
  // During the capture: what is recorded at an event, for joins.
  std::map<const Event*, EventPtr> joins;
  // Events of the list and what the graph records for each, in order; null where it records
  // nothing.
  std::vector<std::pair<std::shared_ptr<Event>, EventPtr>> times;

  cudaGraphExec_t executable = nullptr;

 private:
  Device& device_;
  size_t operations_ = 0;
  moe_ep_failure_record* failure_;
  std::map<const Stream*, std::unique_ptr<Scratch>> scratch_;
};

}  // namespace moe_ep::cuda
