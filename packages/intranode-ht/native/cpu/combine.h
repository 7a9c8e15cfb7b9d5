// Brings results home: each rank sums, in f32 and in rank order, the rows that its tokens left on
// other ranks.
#pragma once

#include <memory>

#include "cpu/buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep::cpu {

struct CombineCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  Tensor x;                   // [received rows or more, hidden]
  Tensor topk_weights;        // f32 [received rows or more, K], may be absent
  Tensor rank_prefix_matrix;  // i32 [R, R]
  Tensor send_head;           // i32 [T, R]
  Tensor bias[2];             // [T, hidden], dtype of out; may be absent
  Tensor out;                 // [T, hidden], dtype of x
  Tensor out_topk_weights;    // f32 [T, K], present with topk_weights
  int64_t timeout_ms;
};

void Combine(const Exec& exec, const CombineCall& call);

}  // namespace moe_ep::cpu
