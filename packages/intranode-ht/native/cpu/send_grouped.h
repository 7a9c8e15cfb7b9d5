// Second half of a dispatch straight into the contiguous layout of grouped GEMMs: what permute
// would make of the received rows.
#pragma once

#include <memory>

#include "cpu/buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep::cpu {

struct SendGroupedCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  int64_t experts;
  int64_t alignment;
  bool fill_with_expert;  // ids of padding rows: the expert before them instead of -1
  bool zero_padding;
  Tensor x;                    // [T, hidden]
  Tensor scales;               // f32 [T, G], may be absent
  Tensor topk_idx;             // [T, K]
  Tensor slot_row;             // i32 [T, K]
  Tensor num_recv_selections;  // i32 [local experts]
  int64_t timeout_ms;
};

void SendGrouped(const Exec& exec, const SendGroupedCall& call);

}  // namespace moe_ep::cpu
