#include "cuda/device_buffer.cuh"
#include "cuda/kernels.h"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

__global__ void UpdateKernel(DeviceState* state, RankBits ranks, bool masks,
                             const moe_ep_failure_record* failure) {
  if (Failed(failure)) return;
  state->mask = masks ? state->mask | ranks : state->mask & ~ranks;
}

__global__ void QueryKernel(const DeviceState* state, int32_t* out, int ranks,
                            const moe_ep_failure_record* failure) {
  if (Failed(failure)) return;
  for (int rank = static_cast<int>(threadIdx.x); rank < ranks; rank += kLanes)
    out[rank] = static_cast<int32_t>(state->mask >> rank & 1);
}

}  // namespace

void UpdateMask(const Exec& exec, const UpdateMaskCall& call) {
  Launch(UpdateKernel, {.grid = 1, .block = 1}, exec.cuda_stream(),
         ToDevice(*call.buffer, 0).first_state, call.ranks, call.masks, exec.cuda_skip());
}

void QueryMask(const Exec& exec, const QueryMaskCall& call) {
  Launch(QueryKernel, {.grid = 1, .block = kLanes}, exec.cuda_stream(),
         ToDevice(*call.buffer, 0).first_state, call.out.data<int32_t>(),
         call.buffer->routes.world_size(), exec.cuda_skip());
}

}  // namespace moe_ep::cuda
