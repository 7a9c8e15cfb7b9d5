#include "cpu/permute.h"

#include <algorithm>
#include <cstring>

#include "moe_ep/deepgemm_permute/copy_row.h"

namespace moe_ep::cpu {
namespace {

// Below this the rows fit into the caches, and the GEMM that comes next finds them there.
constexpr int64_t kStreamFromBytes = int64_t{8} << 20;
constexpr int64_t kStreamFromRowBytes = 512;

// The rows of one expert, and the padding behind them.
struct Segment {
  int64_t begin;
  int64_t rows_end;
  int64_t end;
};

class Segments {
 public:
  Segments(const Placement& placement, int64_t num_experts, int64_t needed)
      : placement_(placement), num_experts_(num_experts), needed_(needed) {}

  int64_t size() const { return num_experts_; }
  int64_t needed() const { return needed_; }
  Segment operator[](int64_t expert) const {
    const int64_t begin = placement_.expert_start[expert];
    const int64_t end = expert + 1 < num_experts_ ? placement_.expert_start[expert + 1] : needed_;
    return {begin, begin + placement_.expert_num_tokens[expert], end};
  }

 private:
  const Placement& placement_;
  const int64_t num_experts_;
  const int64_t needed_;
};

void FillExpertIds(const Exec& exec, const PermuteRequest& request, const Segments& segments,
                   int32_t* expert_ids) {
  exec.ParallelFor(segments.size(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t expert = begin; expert < end; ++expert) {
      const Segment segment = segments[expert];
      const auto id = static_cast<int32_t>(expert);
      std::fill(expert_ids + segment.begin, expert_ids + segment.rows_end, id);
      std::fill(expert_ids + segment.rows_end, expert_ids + segment.end,
                request.fill_expert ? id : -1);
    }
  });
  // Whoever asks for filled padding has a GEMM that takes no negative id.
  std::fill(expert_ids + segments.needed(), expert_ids + request.placement.capacity,
            request.fill_expert ? 0 : -1);
}

void ZeroRows(const RowMove& move, int64_t begin, int64_t end) {
  if (move.from == nullptr || begin >= end) return;
  std::memset(move.to + begin * move.row_bytes, 0,
              static_cast<size_t>((end - begin) * move.row_bytes));
}

void ZeroPadding(const Exec& exec, const PermuteRequest& request, const Segments& segments) {
  // Split by rows, not by experts: the padding after the last expert may be most of it.
  exec.ParallelFor(request.placement.capacity, 16, [&](int64_t begin, int64_t end) {
    const auto zero = [&](int64_t gap_begin, int64_t gap_end) {
      ZeroRows(request.rows, std::max(begin, gap_begin), std::min(end, gap_end));
      ZeroRows(request.scales, std::max(begin, gap_begin), std::min(end, gap_end));
    };
    for (int64_t expert = 0; expert < segments.size(); ++expert)
      zero(segments[expert].rows_end, segments[expert].end);
    zero(segments.needed(), request.placement.capacity);
  });
}

void MoveRow(const RowMove& move, int64_t token, const int32_t* rows, int64_t topk, bool stream) {
  const uint8_t* const from = move.from + token * move.from_stride;
  for (int64_t slot = 0; slot < topk; ++slot) {
    if (rows[slot] < 0) continue;
    uint8_t* const to = move.to + rows[slot] * move.row_bytes;
    if (stream) {
      StreamRow(to, from, move.row_bytes);
    } else {
      std::memcpy(to, from, static_cast<size_t>(move.row_bytes));
    }
  }
}

}  // namespace

void Permute(const Exec& exec, const PermuteRequest& request, const Placement& placement,
             int32_t* expert_ids) {
  const int64_t needed = PlaceRows(exec, request.placement, placement);
  if (needed < 0) return;
  const Segments segments(placement, request.placement.experts.num_local, needed);
  FillExpertIds(exec, request, segments, expert_ids);
  if (request.zero_padding) ZeroPadding(exec, request, segments);

  const int64_t row_bytes = request.rows.row_bytes;
  const bool stream = row_bytes >= kStreamFromRowBytes && needed * row_bytes >= kStreamFromBytes;
  const int64_t topk = request.placement.topk;
  const int64_t grain =
      std::max<int64_t>(1, (int64_t{64} << 10) / std::max<int64_t>(1, row_bytes * topk));
  exec.ParallelFor(request.placement.num_tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int32_t* const rows = placement.row_of_slot + token * topk;
      MoveRow(request.rows, token, rows, topk, stream);
      if (request.scales.from != nullptr) MoveRow(request.scales, token, rows, topk, false);
    }
    if (stream) FinishStreaming();
  });
}

}  // namespace moe_ep::cpu
