// First half of a dispatch: ranks tell one another how many rows they will send, and each derives
// the whole layout.
#pragma once

#include <memory>

#include "cpu/buffer.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/tensor.h"

namespace moe_ep::cpu {

struct NotifyOutputs {
  Tensor num_tokens_per_rank;         // i32 [R]
  Tensor num_tokens_per_expert;       // i32 [E]
  Tensor is_token_in_rank;            // bool [T, R]
  Tensor rank_prefix_matrix;          // i32 [R, R]
  Tensor channel_prefix_matrix;       // i32 [R, C]
  Tensor recv_channel_prefix_matrix;  // i32 [R, C]
  Tensor send_head;                   // i32 [T, R]
  Tensor num_recv_tokens_per_expert;  // i32 [local experts], each rounded up to the alignment
  Tensor num_recv_selections;         // i32 [local experts], as they are
  Tensor slot_row;                    // i32 [T, K], only for rows that are grouped by expert
};

struct NotifyCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  SharedArguments arguments;
  Tensor topk_idx;
  NotifyOutputs out;
  int64_t room;  // rows that this rank can take
  int64_t timeout_ms;
};

void Notify(const Exec& exec, const NotifyCall& call);

struct NotifyCachedCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  SharedArguments arguments;
  Tensor rank_prefix_matrix;  // i32 [R, R], of the plan
  int64_t timeout_ms;
};

// The same meeting without counts, for a dispatch with a cached plan: slots are free on all ranks
// afterwards.
void NotifyCached(const Exec& exec, const NotifyCachedCall& call);

}  // namespace moe_ep::cpu
