// What each operation is called with, on all devices. R ranks, T tokens of this rank, K slots of a
// token, E experts, C channels.
#pragma once

#include <memory>

#include "buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep {

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
  // i32 [R + local experts] in memory of the host that a device writes directly: rows that each
  // rank receives in all, then num_recv_tokens_per_expert. Absent on the cpu, and where nobody
  // asks.
  Tensor host_counts;
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

struct NotifyCachedCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  SharedArguments arguments;
  Tensor rank_prefix_matrix;  // i32 [R, R], of the plan
  int64_t tokens;             // of this rank
  int64_t timeout_ms;
};

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
  int64_t sms;  // multiprocessors of a cuda device that move rows; 0: the default
};

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
  int64_t sms;  // multiprocessors of a cuda device that move rows; 0: the default
};

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
  int64_t sms;  // multiprocessors of a cuda device that move rows; 0: the default
};

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
  int64_t sms;  // multiprocessors of a cuda device that move rows; 0: the default
};

struct RefuseDispatchCall {
  std::shared_ptr<Buffer> buffer;
  int64_t call;
  Refusal refusal;
  int64_t timeout_ms;
};

struct RefuseCombineCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  Refusal refusal;
};

}  // namespace moe_ep
