#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "cpu/cast_row.h"
#include "cpu/kernels.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"
#include "moe_ep/stream_row.h"

namespace moe_ep::cpu {
namespace {

float GlobalScaleOf(const DispatchCall& call) {
  return call.global_scale ? *call.global_scale.data<float>() : 0.0f;
}

// Ids and weights as they travel.
struct Tables {
  std::vector<int32_t> ids;  // [T, PaddedTopk]
  std::vector<float> weights;

  explicit Tables(const DispatchCall& call)
      : ids(static_cast<size_t>(call.x.size(0) * PaddedTopk(call.arguments.topk)), -1),
        weights(call.topk_weights ? ids.size() : 0) {
    const TopkIds given(call.topk_idx);
    const int64_t topk = call.arguments.topk;
    for (int64_t token = 0; token < call.x.size(0); ++token) {
      for (int64_t slot = 0; slot < topk; ++slot) {
        const auto at = static_cast<size_t>(token * PaddedTopk(topk) + slot);
        ids[at] = static_cast<int32_t>(given[token * topk + slot]);
        if (call.topk_weights) weights[at] = call.topk_weights.data<float>()[token * topk + slot];
      }
    }
  }
};

class Sender {
 public:
  Sender(const DispatchCall& call, const ExpertPlacement& placement, const Tables& tables)
      : call_(call),
        buffer_(*call.buffer),
        placement_(placement),
        tables_(tables),
        cast_(static_cast<size_t>(buffer_.layout.message_bytes)) {
    // All ranks send about as much as this one, and share the caches.
    const int64_t ranks = buffer_.routes.world_size();
    const int64_t copies = call.x.size(0) * std::min(call.arguments.topk, ranks);
    stream_ = WorthStreaming(call.arguments.hidden, copies * ranks);
  }

  // The row is cast once, and written to each rank that has one of the token's experts; where every
  // selection has a message of its own, to each expert.
  void Send(int64_t token) {
    const int64_t topk = call_.arguments.topk;
    const int32_t* ids = tables_.ids.data() + token * PaddedTopk(topk);
    int32_t sent[kMaxTopk];  // to these experts, or ranks
    int count = 0;
    const bool per_selection = buffer_.layout.messages_per_token > 1;
    const RankBits present = buffer_.slots[call_.slot].present;
    for (int64_t slot = 0; slot < topk; ++slot) {
      if (ids[slot] < 0) continue;
      const auto rank = static_cast<int32_t>(placement_.RankOf(ids[slot]));
      if (!TakesPart(present, rank)) continue;
      const int32_t target = per_selection ? ids[slot] : rank;
      if (std::find(sent, sent + count, target) != sent + count) continue;
      if (count == 0) MakeRow(token);
      sent[count++] = target;
      uint8_t* message =
          buffer_.Message(rank, call_.slot, buffer_.routes.rank(), token, per_selection ? slot : 0);
      if (stream_) {
        StreamRow(message, row_, row_bytes_);
      } else {
        std::memcpy(message, row_, static_cast<size_t>(row_bytes_));
      }
    }
  }

 private:
  void MakeRow(int64_t token) {
    const int64_t hidden = call_.arguments.hidden;
    const auto* x = call_.x.data<uint16_t>() + token * hidden;
    row_bytes_ = RowBytes(call_.format(), hidden);
    if (call_.format() == RowFormat::kBF16) {
      row_ = reinterpret_cast<const uint8_t*>(x);
      return;
    }
    CastRow(call_.format(), GlobalScaleOf(call_), x, hidden, cast_.data());
    row_ = cast_.data();
  }

  const DispatchCall& call_;
  const Buffer& buffer_;
  const ExpertPlacement& placement_;
  const Tables& tables_;
  std::vector<uint8_t> cast_;
  const uint8_t* row_ = nullptr;
  int64_t row_bytes_ = 0;
  bool stream_;
};

void PutTables(const DispatchCall& call, const Tables& tables, int rank) {
  const Buffer& buffer = *call.buffer;
  const int source = buffer.routes.rank();
  // Without tokens there is nothing to point at.
  if (tables.ids.empty()) return;
  std::memcpy(buffer.Ids(rank, call.slot, source), tables.ids.data(), tables.ids.size() * 4);
  if (!tables.weights.empty()) {
    std::memcpy(buffer.Weights(rank, call.slot, source), tables.weights.data(),
                tables.weights.size() * 4);
  }
}

// A token with an id that is no expert's refuses the whole dispatch, on all ranks alike.
DispatchHead HeadOf(const DispatchCall& call) {
  DispatchHead head = {call.arguments, call.x.size(0), -1, 0, call.refusal};
  head.arguments.global_scale = std::bit_cast<uint32_t>(GlobalScaleOf(call));
  const TopkIds ids(call.topk_idx);
  const int64_t topk = call.arguments.topk;
  const int64_t wrong = FindInvalidId(ids, call.x.size(0) * topk, call.arguments.experts);
  if (wrong >= 0) {
    head.invalid_token = wrong / topk;
    head.invalid_id = ids[wrong];
  }
  return head;
}

}  // namespace

bool DispatchSend(const Exec& exec, const DispatchCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return false;
  SlotState& state = buffer.slots[call.slot];
  const uint64_t epoch = ++state.epoch;
  const RankBits before = state.present;
  state.present = buffer.Unmasked();
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  const auto wait_for = [&](SignalKind kind, uint64_t value, RankBits* ranks) {
    return buffer.WaitForAll(exec, call.slot, kind, value, deadline, kDispatchOperation,
                             "word that its slot is free", ranks);
  };
  // Nobody writes messages over those that a rank has not unpacked yet.
  if (!wait_for(SignalKind::kFree, epoch - 1, &state.present)) return false;
  // Nor tables over those that combine of the other ranks still reads: this rank's own has waited
  // for them, unless it refused.
  if (IsRefusalOf(buffer.ToldOfResults(call.slot), epoch - 1)) {
    RankBits combining = state.present & before;
    if (!wait_for(SignalKind::kResults, SignalOf(epoch - 1, 0), &combining)) return false;
    state.present &= combining | ~before;
  }
  const int ranks = buffer.routes.world_size();
  const ExpertPlacement placement{call.arguments.experts, ranks};
  // Masked ranks hear of it, too, so that one that knows nothing of its mask need not wait to see.
  DispatchHead head = HeadOf(call);
  head.arguments.mask = static_cast<int64_t>(~state.present);
  if (head.invalid_token < 0) {
    const Tables tables(call);
    exec.ParallelFor(call.x.size(0), 4, [&](int64_t begin, int64_t end) {
      Sender sender(call, placement, tables);
      for (int64_t token = begin; token < end; ++token) sender.Send(token);
      FinishStreaming();
    });
    for (int rank = 0; rank < ranks; ++rank)
      if (TakesPart(state.present, rank)) PutTables(call, tables, rank);
  }
  for (int rank = 0; rank < ranks; ++rank)
    buffer.Head(rank, call.slot, buffer.routes.rank()) = head;
  buffer.routes.Flush();
  buffer.SignalAll(call.slot, SignalKind::kMessages, SignalOf(epoch, head.tokens));
  // Who refuses unpacks nothing of what it is sent.
  if (call.refusal != 0) buffer.SignalAll(call.slot, SignalKind::kFree, epoch);
  return true;
}

}  // namespace moe_ep::cpu
