#include "cpu/send.h"

#include <cstring>

#include "cpu/row_copy.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cpu {
namespace {

// Ids become local to the receiver: -1 where the expert lives elsewhere, and such slots weigh
// nothing.
template <typename Id>
void WriteRouting(const SendCall& call, const ExpertPlacement& placement, int64_t token, int peer,
                  int64_t row) {
  const int64_t topk = call.topk_idx.size(1);
  const Id* ids = call.topk_idx.data<Id>() + token * topk;
  const float* weights =
      call.topk_weights ? call.topk_weights.data<float>() + token * topk : nullptr;
  const int64_t begin = placement.BeginOf(peer);
  const int64_t end = begin + placement.CountOf(peer);
  Id* out_ids = reinterpret_cast<Id*>(call.buffer->TopkIdx(peer, call.slot)) + row * topk;
  float* out_weights = call.buffer->TopkWeights(peer, call.slot) + row * topk;
  for (int64_t slot = 0; slot < topk; ++slot) {
    const bool local = ids[slot] >= begin && ids[slot] < end;
    out_ids[slot] = local ? static_cast<Id>(ids[slot] - begin) : Id{-1};
    if (weights != nullptr) out_weights[slot] = local ? weights[slot] : 0.0f;
  }
}

void SendToken(const SendCall& call, const ExpertPlacement& placement, const RowCopy& copy,
               int64_t token) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const auto* head = call.send_head.data<int32_t>() + token * ranks;
  for (int step = 0; step < ranks; ++step) {
    const int peer = (buffer.routes.rank() + step) % ranks;
    const int64_t row = head[peer];
    if (row < 0) continue;
    copy(buffer.Rows(peer, call.slot), row, call.x.data<uint8_t>(), token);
    buffer.SourceIndex(peer, call.slot)[row] = static_cast<int32_t>(token);
    if (call.scales) {
      const int64_t columns = call.scales.size(1);
      std::memcpy(buffer.Scales(peer, call.slot) + row * columns,
                  call.scales.data<float>() + token * columns,
                  static_cast<size_t>(columns) * sizeof(float));
    }
    if (!call.topk_idx) continue;
    if (call.topk_idx.dtype() == DType::kI64) {
      WriteRouting<int64_t>(call, placement, token, peer, row);
    } else {
      WriteRouting<int32_t>(call, placement, token, peer, row);
    }
  }
}

// Rows that nobody sent must not look like rows of an earlier dispatch.
void FillTail(const SendCall& call) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int rank = buffer.routes.rank();
  const int64_t topk = call.topk_idx.size(1);
  const int64_t begin = call.rank_prefix_matrix.data<int32_t>()[(ranks - 1) * ranks + rank] * topk;
  const int64_t count = buffer.layout.capacity * topk - begin;
  const size_t id_bytes = call.topk_idx.dtype() == DType::kI64 ? 8 : 4;
  std::memset(buffer.TopkIdx(rank, call.slot) + begin * static_cast<int64_t>(id_bytes), 0xff,
              static_cast<size_t>(count) * id_bytes);
  std::memset(buffer.TopkWeights(rank, call.slot) + begin, 0,
              static_cast<size_t>(count) * sizeof(float));
}

}  // namespace

void Send(const Exec& exec, const SendCall& call) {
  const Buffer& buffer = *call.buffer;
  if (!buffer.CheckSettled(exec, call.slot)) return;
  const ExpertPlacement placement{call.experts, buffer.routes.world_size()};
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  int64_t rows = 0;
  for (int peer = 0; peer < buffer.routes.world_size(); ++peer)
    rows += call.num_tokens_per_rank.data<int32_t>()[peer];
  const RowCopy copy(row_bytes, rows);
  exec.ParallelFor(call.x.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) SendToken(call, placement, copy, token);
    copy.Finish();
  });
  buffer.routes.Flush();
  const uint64_t epoch = buffer.slots[call.slot].dispatch_epoch;
  buffer.SignalAll(call.slot, SignalKind::kRows, epoch);
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kRows, epoch, deadline, "intranode dispatch",
                         "rows"))
    return;
  if (call.fill_tail && call.topk_idx) FillTail(call);
}

}  // namespace moe_ep::cpu
