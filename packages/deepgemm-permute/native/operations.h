// The operations on the device of the stream that runs them.
#pragma once

#include "cpu/permute.h"
#include "cpu/slot_counts.h"
#include "cpu/unpermute.h"
#include "moe_ep/command.h"
#include "requests.h"

#if MOE_EP_CUDA
#include "cuda/permute.h"
#include "cuda/unpermute.h"
#define MOE_EP_ON_CUDA(exec, call) \
  if ((exec).on_cuda()) return cuda::call
#else
#define MOE_EP_ON_CUDA(exec, call)  // streams of other devices were refused before
#endif

namespace moe_ep {

inline void CountExpertNumTokens(const Exec& exec, const LocalExperts& experts, int64_t num_slots,
                                 int64_t topk, int32_t* counts) {
  MOE_EP_ON_CUDA(exec, CountExpertNumTokens(exec, experts, num_slots, topk, counts));
  cpu::CountExpertNumTokens(exec, experts, num_slots, topk, counts);
}

inline void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
                    int32_t* expert_ids) {
  MOE_EP_ON_CUDA(exec, Permute(exec, request, placement, expert_ids));
  cpu::Permute(exec, request, placement, expert_ids);
}

inline void UnpermuteAndReduce(const Exec& exec, const UnpermuteRequest& request) {
  MOE_EP_ON_CUDA(exec, UnpermuteAndReduce(exec, request));
  cpu::UnpermuteAndReduce(exec, request);
}

}  // namespace moe_ep

#undef MOE_EP_ON_CUDA
