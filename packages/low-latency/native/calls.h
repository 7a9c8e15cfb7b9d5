// What the binding hands to the kernels.
#pragma once

#include <memory>

#include "buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep {

// Which phases of a call are wanted: both at once, or one after the other by a receive hook.
struct Phases {
  bool send;
  bool receive;
};

// What a rank remembers of the messages that it received, for combine.
struct Received {
  Tensor rows;  // i32 [ranks, max_tokens, PaddedTopk(topk)]: the row among those of all experts
                // that a selection got here, -1 where its expert is elsewhere; tokens without one:
                // undefined
  Tensor messages;  // i32 [ranks * max_tokens]: source * max_tokens + token of tokens that have one
  Tensor first;     // i32 [ranks + 1]: where each source's messages begin
};

struct DispatchCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  Phases phases;
  SharedArguments arguments;
  int64_t timeout_ms;
  int64_t sms;      // blocks of a cuda device
  int64_t refusal;  // 0, or an error's number: then this rank has no rows, and no tensor is there

  RowFormat format() const { return static_cast<RowFormat>(arguments.format); }

  Tensor x;             // bf16 [T, hidden]
  Tensor topk_idx;      // i32 or i64 [T, topk]
  Tensor topk_weights;  // f32 [T, topk], or absent
  Tensor global_scale;  // f32 [1] of NVFP4, else absent

  // Rank-major, source ranks stand in place of local experts, with max_tokens rows each.
  Tensor recv_x;        // bf16, fp8 or fp4 [local experts, ranks * max_tokens, hidden]
  Tensor recv_scales;   // f32 [local experts, rows, groups] or i32 [.., words], column-major; bytes
                        // [.., groups], row-major; absent for bf16
  Tensor recv_count;    // i32 [local experts]
  Tensor src_info;      // i32 [local experts, ranks * max_tokens]
  Tensor layout_range;  // i64 [local experts, ranks]: begin << 32 | count; absent rank-major
  Received received;
  Tensor recv_topk_idx;      // rank-major: i32 [ranks, max_tokens, topk], local ids
  Tensor recv_topk_weights;  // f32 of the same shape; absent without weights
  Tensor recv_stats;         // i32 [local experts], grows by recv_count; or absent
  Tensor wait_stats;         // i64 [ranks], grows by nanoseconds waited for each source; or absent
};

struct UpdateMaskCall {
  std::shared_ptr<Buffer> buffer;
  RankBits ranks;
  bool masks;  // else unmasks
};

struct QueryMaskCall {
  std::shared_ptr<Buffer> buffer;
  Tensor out;  // i32 [ranks]: 1 for a masked one
};

struct CombineCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  Phases phases;
  bool weighted;    // weights came with the dispatch, or rank-major: one row of a rank comes home
  bool rank_major;  // rows go home as they are
  bool logfmt;      // rows go home as LogFMT-10
  int64_t experts;  // of all ranks
  int64_t timeout_ms;
  int64_t sms;
  Tensor x;  // bf16 [local experts, ranks * max_tokens, hidden]
  Received received;
  Tensor topk_idx;
  Tensor topk_weights;  // f32 [T, topk]; absent when weighted
  Tensor out;           // bf16 [T, hidden]
  Tensor wait_stats;    // as in dispatch
};

struct RefuseCombineCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  int64_t note;  // of the signal of results: kRefusal and the number of an error's code
};

}  // namespace moe_ep
