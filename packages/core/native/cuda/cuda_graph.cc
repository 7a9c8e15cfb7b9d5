#include "cuda/cuda_graph.h"

#include <new>
#include <utility>

namespace moe_ep::cuda {

void* Scratch::Get(uint64_t key, uint64_t bytes) {
  Part& part = parts_[key];
  if (part.bytes >= bytes && part.memory != nullptr) return part.memory;
  try {
    void* memory = device_.AllocateZeroed(bytes);
    if (part.memory != nullptr) outgrown_.push_back(part.memory);
    part = {memory, bytes};
    return memory;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

Scratch::~Scratch() {
  for (const auto& [key, part] : parts_) outgrown_.push_back(part.memory);
  device_.Retire([&device = device_, memories = std::move(outgrown_)] {
    for (void* memory : memories) {
      if (memory != nullptr) device.Free(memory);
    }
  });
}

CudaGraph::CudaGraph(Device& device)
    : device_(device),
      failure_(static_cast<moe_ep_failure_record*>(
          device.AllocateZeroed(sizeof(moe_ep_failure_record)))) {}

CudaGraph::~CudaGraph() {
  device_.Retire(
      [&device = device_, executable = executable, failure = failure_, at_end = std::move(at_end)] {
        device.MakeCurrent();
        if (executable != nullptr) cudaGraphExecDestroy(executable);
        device.Free(failure);
        for (const auto& then : at_end) then();
      });
}

cudaError_t CudaGraph::Instantiate(cudaGraph_t graph) {
  size_t count = 0;
  cudaError_t status = cudaGraphGetNodes(graph, nullptr, &count);
  std::vector<cudaGraphNode_t> nodes(count);
  if (status == cudaSuccess && count > 0) status = cudaGraphGetNodes(graph, nodes.data(), &count);
  for (size_t i = 0; status == cudaSuccess && i < count; ++i) {
    cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
    status = cudaGraphNodeGetType(nodes[i], &type);
    operations_ += type == cudaGraphNodeTypeKernel || type == cudaGraphNodeTypeMemcpy ||
                   type == cudaGraphNodeTypeMemset;
  }
  return status == cudaSuccess ? cudaGraphInstantiate(&executable, graph, 0) : status;
}

Scratch& CudaGraph::ScratchOf(const Stream* stream) {
  auto& scratch = scratch_[stream];
  if (scratch == nullptr) scratch = std::make_unique<Scratch>(device_);
  return *scratch;
}

}  // namespace moe_ep::cuda
