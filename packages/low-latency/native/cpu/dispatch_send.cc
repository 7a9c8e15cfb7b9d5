#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "moe_ep/isa.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"
#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/group_quant.h"

namespace moe_ep::cpu {
namespace {

constexpr int32_t kNowhere = -1;

// Which message of which rank a token becomes: by token, so that the order of rows depends on
// nothing else.
struct Messages {
  std::vector<int32_t> index;  // [T, ranks], kNowhere where no expert of the rank is chosen
  std::vector<int64_t> count;  // [ranks]

  Messages(const DispatchSendCall& call, const ExpertPlacement& placement)
      : index(static_cast<size_t>(call.x.size(0) * placement.ranks), kNowhere),
        count(static_cast<size_t>(placement.ranks)) {
    const TopkIds ids(call.topk_idx);
    const int64_t topk = call.arguments.topk;
    for (int64_t token = 0; token < call.x.size(0); ++token) {
      for (int64_t slot = 0; slot < topk; ++slot) {
        const int64_t id = ids[token * topk + slot];
        if (id < 0) continue;
        const auto rank = static_cast<size_t>(placement.RankOf(id));
        int32_t& of_token = index[static_cast<size_t>(token * placement.ranks) + rank];
        if (of_token == kNowhere) of_token = static_cast<int32_t>(count[rank]++);
      }
    }
  }
};

// What travels of a row: x as it is, or its codes and then its scales.
MOE_EP_CLONES void CastRow(const uint16_t* x, int64_t hidden, bool power_of_two, uint8_t* row) {
  const ScaleRule rule = {GroupNumerics::kDeepEp, power_of_two};
  const ScaleRow scales = {row + (hidden + 3) / 4 * 4, sizeof(float), /*packed=*/false};
  QuantizeRowPerGroup<BF16Element, Encoding::kMultiply>(x, hidden, kGroupSize, rule, row, scales);
}

class Sender {
 public:
  Sender(const DispatchSendCall& call, const ExpertPlacement& placement, const Messages& messages)
      : call_(call),
        placement_(placement),
        messages_(messages),
        ids_(call.topk_idx),
        header_bytes_(HeaderBytes(call.buffer->layout.max_topk)),
        message_(static_cast<size_t>(call.buffer->layout.message_bytes)) {}

  // The row is cast once, behind the header, which differs from rank to rank.
  void Send(int64_t token) {
    const Buffer& buffer = *call_.buffer;
    const int64_t ranks = placement_.ranks;
    const int32_t* index = messages_.index.data() + token * ranks;
    const int64_t row_bytes = PutRow(token);
    int32_t place = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      if (index[rank] == kNowhere) continue;
      PutHeader(token, rank, place++);
      MessageHeader& target = buffer.Message(rank, call_.slot, buffer.routes.rank(), index[rank]);
      std::memcpy(&target, message_.data(), static_cast<size_t>(header_bytes_ + row_bytes));
    }
  }

 private:
  int64_t PutRow(int64_t token) {
    const int64_t hidden = call_.arguments.hidden;
    const auto* x = call_.x.data<uint16_t>() + token * hidden;
    uint8_t* row = message_.data() + header_bytes_;
    const auto format = static_cast<RowFormat>(call_.arguments.format);
    if (format == RowFormat::kBF16) {
      std::memcpy(row, x, static_cast<size_t>(hidden) * 2);
      return hidden * 2;
    }
    CastRow(x, hidden, format == RowFormat::kFp8PowerOfTwo, row);
    return (hidden + 3) / 4 * 4 + (hidden + kGroupSize - 1) / kGroupSize * 4;
  }

  void PutHeader(int64_t token, int rank, int32_t place) {
    auto* header = reinterpret_cast<MessageHeader*>(message_.data());
    *header = {static_cast<int32_t>(token), 0, place, 0};
    const int64_t topk = call_.arguments.topk;
    const int64_t begin = placement_.BeginOf(rank);
    const int64_t end = begin + placement_.CountOf(rank);
    for (int64_t slot = 0; slot < topk; ++slot) {
      const int64_t id = ids_[token * topk + slot];
      if (id < begin || id >= end) continue;
      const float weight =
          call_.topk_weights ? call_.topk_weights.data<float>()[token * topk + slot] : 0.0f;
      header->selections()[header->count++] = {static_cast<int32_t>(id - begin),
                                               static_cast<int32_t>(slot), weight};
    }
  }

  const DispatchSendCall& call_;
  const ExpertPlacement& placement_;
  const Messages& messages_;
  TopkIds ids_;
  int64_t header_bytes_;
  std::vector<uint8_t> message_;
};

// A token with an id that is no expert's refuses the whole dispatch, on all ranks alike.
DispatchHead HeadWithoutMessages(const DispatchSendCall& call) {
  DispatchHead head = {call.arguments, 0, -1, 0};
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

void DispatchSend(const Exec& exec, const DispatchSendCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const uint64_t epoch = ++buffer.slots[call.slot].epoch;
  // Nobody writes messages over those that a rank has not unpacked yet.
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kFree, epoch - 1,
                         DeadlineAfter(call.timeout_ms), kDispatchOperation,
                         "word that its slot is free"))
    return;
  const ExpertPlacement placement{call.arguments.experts, buffer.routes.world_size()};
  DispatchHead head = HeadWithoutMessages(call);
  std::vector<int64_t> counts(static_cast<size_t>(placement.ranks));
  if (head.invalid_token < 0) {
    const Messages messages(call, placement);
    counts = messages.count;
    exec.ParallelFor(call.x.size(0), 4, [&](int64_t begin, int64_t end) {
      Sender sender(call, placement, messages);
      for (int64_t token = begin; token < end; ++token) sender.Send(token);
    });
  }
  for (int rank = 0; rank < placement.ranks; ++rank) {
    head.count = counts[static_cast<size_t>(rank)];
    buffer.Head(rank, call.slot, buffer.routes.rank()) = head;
  }
  buffer.routes.Flush();
  buffer.SignalAll(call.slot, SignalKind::kMessages, epoch);
}

}  // namespace moe_ep::cpu
