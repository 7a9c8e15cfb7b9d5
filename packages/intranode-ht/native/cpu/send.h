// Second half of a dispatch: every row is written once to each rank that needs it, straight to its
// final place.
#pragma once

#include <memory>

#include "cpu/buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep::cpu {

struct SendCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  int64_t experts;
  Tensor x;                    // [T, hidden]
  Tensor scales;               // f32 [T, G], may be absent
  Tensor topk_idx;             // [T, K], may be absent
  Tensor topk_weights;         // f32 [T, K], may be absent
  Tensor send_head;            // i32 [T, R]
  Tensor num_tokens_per_rank;  // i32 [R]
  Tensor rank_prefix_matrix;   // i32 [R, R]
  bool fill_tail;  // give rows past the received ones ids of -1: for outputs of worst-case size
  int64_t timeout_ms;
};

void Send(const Exec& exec, const SendCall& call);

}  // namespace moe_ep::cpu
