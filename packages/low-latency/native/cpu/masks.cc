#include "cpu/kernels.h"

namespace moe_ep::cpu {

void UpdateMask(const Exec&, const UpdateMaskCall& call) {
  if (call.masks) {
    call.buffer->mask.fetch_or(call.ranks, std::memory_order_relaxed);
  } else {
    call.buffer->mask.fetch_and(~call.ranks, std::memory_order_relaxed);
  }
}

void QueryMask(const Exec&, const QueryMaskCall& call) {
  const RankBits unmasked = call.buffer->Unmasked();
  for (int rank = 0; rank < call.buffer->routes.world_size(); ++rank)
    call.out.data<int32_t>()[rank] = TakesPart(unmasked, rank) ? 0 : 1;
}

}  // namespace moe_ep::cpu
