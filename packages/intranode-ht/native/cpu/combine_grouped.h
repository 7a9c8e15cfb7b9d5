// Combine straight from rows that are grouped by expert: unpermute and combine in one pass, the
// same bits.
#pragma once

#include <memory>

#include "cpu/buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep::cpu {

struct CombineGroupedCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  int64_t experts;
  Tensor x;                           // [grouped rows, hidden]
  Tensor topk_idx;                    // [T, K]
  Tensor topk_weights;                // f32 [T, K], of this rank's own tokens
  Tensor slot_row;                    // i32 [T, K]
  Tensor num_recv_tokens_per_expert;  // i32 [local experts], rounded up: how many rows there are
  Tensor out;                         // [T, hidden], dtype of x
  int64_t timeout_ms;
};

void CombineGrouped(const Exec& exec, const CombineGroupedCall& call);

}  // namespace moe_ep::cpu
