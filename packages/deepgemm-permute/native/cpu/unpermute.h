// Weighted sums of expert rows back in token order. Definitions: README.md and src/reference.
#pragma once

#include <cstdint>
#include <optional>

#include "moe_ep/command.h"
#include "moe_ep/deepgemm_permute/local_experts.h"
#include "moe_ep/dtype.h"

namespace moe_ep::cpu {

struct UnpermuteRequest {
  // Which slots take part: those with a local expert, where ids are given; else those whose row is
  // below `num_valid_rows`; where that is null, all.
  std::optional<LocalExperts> experts;
  const int64_t* num_valid_rows;
  const int32_t* row_of_slot;  // [num_tokens, topk]
  const float* weights;        // [num_tokens, topk]
  int64_t num_tokens;
  int64_t topk;
  int64_t hidden;
  const void* rows;
  DType rows_dtype;
  int64_t row_stride;  // elements
  int64_t num_rows;
  void* out;  // [num_tokens, hidden]
  DType out_dtype;
};

void UnpermuteAndReduce(const Exec& exec, const UnpermuteRequest& request);

}  // namespace moe_ep::cpu
