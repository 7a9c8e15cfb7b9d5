#include "cpu/send_grouped.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/row_copy.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cpu {
namespace {

// A segment of the layout: `count` rows of one expert from `start`, then padding up to `end`.
struct Segment {
  int64_t start;
  int64_t count;
  int64_t end;
};

// Every selection gets its own row. Shared memory has no link on which a second copy would be
// saved, so the sender writes all.
void SendToken(const SendGroupedCall& call, const ExpertPlacement& placement, const RowCopy& copy,
               int64_t token) {
  const Buffer& buffer = *call.buffer;
  const TopkIds ids(call.topk_idx);
  const int64_t topk = call.topk_idx.size(1);
  for (int64_t slot = token * topk; slot < (token + 1) * topk; ++slot) {
    const int64_t row = call.slot_row.data<int32_t>()[slot];
    if (row < 0) continue;
    const int peer = static_cast<int>(placement.RankOf(ids[slot]));
    copy(buffer.Rows(peer, call.slot), row, call.x.data<uint8_t>(), token);
    if (!call.scales) continue;
    const int64_t columns = call.scales.size(1);
    std::memcpy(buffer.Scales(peer, call.slot) + row * columns,
                call.scales.data<float>() + token * columns,
                static_cast<size_t>(columns) * sizeof(float));
  }
}

std::vector<Segment> SegmentsOf(const SendGroupedCall& call) {
  std::vector<Segment> segments;
  int64_t start = 0;
  for (int64_t expert = 0; expert < call.num_recv_selections.numel(); ++expert) {
    const int64_t count = call.num_recv_selections.data<int32_t>()[expert];
    const int64_t end = start + (count + call.alignment - 1) / call.alignment * call.alignment;
    segments.push_back({start, count, end});
    start = end;
  }
  return segments;
}

void WriteExpertIds(const SendGroupedCall& call, const std::vector<Segment>& segments) {
  int32_t* ids = call.buffer->SourceIndex(call.buffer->routes.rank(), call.slot);
  for (size_t expert = 0; expert < segments.size(); ++expert) {
    const Segment& segment = segments[expert];
    const auto id = static_cast<int32_t>(expert);
    std::fill(ids + segment.start, ids + segment.start + segment.count, id);
    std::fill(ids + segment.start + segment.count, ids + segment.end,
              call.fill_with_expert ? id : -1);
  }
}

void ZeroPadding(const SendGroupedCall& call, const std::vector<Segment>& segments,
                 int64_t row_bytes) {
  const Buffer& buffer = *call.buffer;
  const int rank = buffer.routes.rank();
  for (const Segment& segment : segments) {
    const int64_t begin = segment.start + segment.count;
    const auto rows = static_cast<size_t>(segment.end - begin);
    std::memset(buffer.Rows(rank, call.slot) + begin * row_bytes, 0,
                rows * static_cast<size_t>(row_bytes));
    if (!call.scales) continue;
    const int64_t columns = call.scales.size(1);
    std::memset(buffer.Scales(rank, call.slot) + begin * columns, 0,
                rows * static_cast<size_t>(columns) * sizeof(float));
  }
}

// Scales arrive in rows, so that no peer writes four bytes here and four there, and are turned
// around where they lie warm.
void TransposeScales(const Exec& exec, const SendGroupedCall& call, int64_t rows) {
  const Buffer& buffer = *call.buffer;
  const int rank = buffer.routes.rank();
  const int64_t columns = call.scales.size(1);
  const int64_t column_stride = (rows + 3) / 4 * 4;
  const float* from = buffer.Scales(rank, call.slot);
  float* to = buffer.ColumnScales(rank, call.slot);
  exec.ParallelFor(rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t column = 0; column < columns; ++column) {
      for (int64_t row = begin; row < end; ++row)
        to[column * column_stride + row] = from[row * columns + column];
    }
  });
}

}  // namespace

void SendGrouped(const Exec& exec, const SendGroupedCall& call) {
  const Buffer& buffer = *call.buffer;
  if (!buffer.CheckSettled(exec, call.slot)) return;
  const ExpertPlacement placement{call.experts, buffer.routes.world_size()};
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  const std::vector<Segment> segments = SegmentsOf(call);
  const RowCopy copy(row_bytes, call.topk_idx.numel());
  exec.ParallelFor(call.x.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) SendToken(call, placement, copy, token);
    copy.Finish();
  });
  buffer.routes.Flush();
  const uint64_t epoch = buffer.slots[call.slot].dispatch_epoch;
  buffer.SignalAll(call.slot, SignalKind::kRows, epoch);
  WriteExpertIds(call, segments);
  if (call.zero_padding) ZeroPadding(call, segments, row_bytes);
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kRows, epoch, deadline, "intranode dispatch",
                         "rows"))
    return;
  if (call.scales) TransposeScales(exec, call, segments.empty() ? 0 : segments.back().end);
}

}  // namespace moe_ep::cpu
