// Brings results home: each rank sums, in f32 and in rank order, the rows that its tokens left on other ranks.
#pragma once

#include <memory>

#include "cpu/buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep::cpu {

struct CombineCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  Tensor x;                    // [received rows, hidden]
  Tensor num_tokens_per_rank;  // i32 [R]: who has rows for this rank
  Tensor send_head;            // i32 [T, R]
  Tensor out;                  // [T, hidden], dtype of x
  int64_t timeout_ms;
};

void Combine(const Exec& exec, const CombineCall& call);

}  // namespace moe_ep::cpu
