// What the binding hands to the kernels.
#pragma once

#include <memory>

#include "buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep {

struct DispatchSendCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  SharedArguments arguments;
  Tensor x;             // bf16 [T, hidden]
  Tensor topk_idx;      // i32 or i64 [T, topk]
  Tensor topk_weights;  // f32 [T, topk], or absent
  int64_t timeout_ms;
};

// Rows of a rank: local experts x (ranks * max_tokens). Tensors of the received side.
struct Received {
  Tensor origins;  // u8 [ranks, max_tokens, HeaderBytes]: headers with rows in place of experts
  Tensor num_messages;  // i32 [ranks]
};

// Rank-major, tensors have source ranks in place of local experts, and max_tokens rows for each.
struct DispatchReceiveCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  SharedArguments arguments;
  Tensor recv_x;       // bf16 or fp8 [local experts, ranks * max_tokens, hidden]
  Tensor recv_scales;  // f32 [local experts, rows, groups] or i32 [.., words], column-major; absent
                       // for bf16
  Tensor recv_count;   // i32 [local experts]
  Tensor src_info;     // i32 [local experts, ranks * max_tokens]
  Tensor layout_range;  // i64 [local experts, ranks]: begin << 32 | count
  Received received;
  Tensor recv_topk_idx;      // rank-major: i32 [ranks, max_tokens, topk], local ids
  Tensor recv_topk_weights;  // f32 of the same shape; absent without weights
  Tensor recv_stats;         // i32 [local experts], grows by recv_count; or absent
  Tensor wait_stats;         // i64 [ranks], grows by nanoseconds waited for each source; or absent
  int64_t timeout_ms;
};

struct CombineSendCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  bool weighted;    // weights came with the dispatch: one sum for each token goes home
  bool rank_major;  // one row for each token goes home as it is
  Tensor x;         // bf16 [local experts, ranks * max_tokens, hidden]
  Received received;
};

struct CombineReceiveCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  bool weighted;  // one row of each rank comes home, else one for each selection
  int64_t experts;
  Tensor topk_idx;
  Tensor topk_weights;  // f32 [T, topk]; absent when weighted
  Tensor out;           // bf16 [T, hidden]
  Tensor wait_stats;    // as in dispatch
  int64_t timeout_ms;
};

}  // namespace moe_ep
