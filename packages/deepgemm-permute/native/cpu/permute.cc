#include "cpu/permute.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/placement.h"
#include "cpu/scale_rows.h"
#include "moe_ep/stream_row.h"

namespace moe_ep::cpu {
namespace {

// The rows of one expert, and the padding behind them.
struct Segment {
  int64_t begin;
  int64_t rows_end;
  int64_t end;
};

Segment SegmentOf(const Placement& placement, int64_t expert) {
  const int64_t begin = placement.expert_start[expert];
  return {begin, begin + placement.expert_num_tokens[expert], placement.expert_start[expert + 1]};
}

void FillExpertIds(const Exec& exec, const PermuteRequest& request, const Placement& placement,
                   int32_t* expert_ids) {
  const PaddingIds& padding = request.padding_ids;
  const int64_t num_experts = request.placement.experts.num_local;
  exec.ParallelFor(num_experts, 16, [&](int64_t begin, int64_t end) {
    for (int64_t expert = begin; expert < end; ++expert) {
      const Segment segment = SegmentOf(placement, expert);
      const auto id = static_cast<int32_t>(expert);
      std::fill(expert_ids + segment.begin, expert_ids + segment.rows_end, id);
      std::fill(expert_ids + segment.rows_end, expert_ids + segment.end,
                padding.inside.value_or(id));
    }
  });
  if (padding.behind.has_value())
    std::fill(expert_ids + placement.expert_start[num_experts],
              expert_ids + request.placement.capacity, *padding.behind);
}

void ZeroPadding(const Exec& exec, const PermuteRequest& request, const Placement& placement) {
  const RowMove& move = request.rows;
  const int64_t num_experts = request.placement.experts.num_local;
  // Split by rows, not by experts: the padding after the last expert may be most of it.
  exec.ParallelFor(request.placement.capacity, 16, [&](int64_t begin, int64_t end) {
    const auto zero = [&](int64_t gap_begin, int64_t gap_end) {
      const int64_t from = std::max(begin, gap_begin);
      const int64_t to = std::min(end, gap_end);
      if (from < to)
        std::memset(move.to + from * move.row_bytes, 0,
                    static_cast<size_t>((to - from) * move.row_bytes));
    };
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      const Segment segment = SegmentOf(placement, expert);
      zero(segment.rows_end, segment.end);
    }
    zero(placement.expert_start[num_experts], request.placement.capacity);
  });
}

void MoveRows(const Exec& exec, const PermuteRequest& request, const Placement& placement,
              int64_t needed) {
  const RowMove& move = request.rows;
  const int64_t row_bytes = move.row_bytes;
  const bool stream = WorthStreaming(row_bytes, needed);
  const int64_t topk = request.placement.topk;
  const int64_t grain =
      std::max<int64_t>(1, (int64_t{64} << 10) / std::max<int64_t>(1, row_bytes * topk));
  exec.ParallelFor(request.placement.num_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int32_t* const rows = placement.row_of_slot + token * topk;
      const uint8_t* const from = move.from + token * move.from_stride;
      for (int64_t slot = 0; slot < topk; ++slot) {
        const int64_t row = rows[slot];
        if (row < 0 || row >= needed) continue;
        uint8_t* const to = move.to + row * row_bytes;
        if (stream) {
          StreamRow(to, from, row_bytes);
        } else {
          std::memcpy(to, from, static_cast<size_t>(row_bytes));
        }
      }
    }
    if (stream) FinishStreaming();
  });
}

// The token whose row each row of the layout is, -1 for padding.
std::vector<int32_t> TokensOfRows(const Exec& exec, const PlacementRequest& request,
                                  const Placement& placement, int64_t needed) {
  std::vector<int32_t> token_of_row(static_cast<size_t>(request.capacity), -1);
  exec.ParallelFor(request.num_tokens, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin * request.topk; slot < end * request.topk; ++slot) {
      const int64_t row = placement.row_of_slot[slot];
      if (row >= 0 && row < needed)
        token_of_row[static_cast<size_t>(row)] = static_cast<int32_t>(slot / request.topk);
    }
  });
  return token_of_row;
}

}  // namespace

void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
             int32_t* expert_ids) {
  const int64_t needed = PlaceRows(exec, request.placement, placement);
  if (needed < 0) return;
  if (expert_ids != nullptr) FillExpertIds(exec, request, placement, expert_ids);
  if (request.zero_rows) ZeroPadding(exec, request, placement);
  MoveRows(exec, request, placement, needed);
  if (request.scales.from == nullptr) return;
  const std::vector<int32_t> token_of_row =
      TokensOfRows(exec, request.placement, placement, needed);
  MoveScales(exec, request.scales, token_of_row.data(), request.placement.capacity,
             request.zero_scales);
}

}  // namespace moe_ep::cpu
