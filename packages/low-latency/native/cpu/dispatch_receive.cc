#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "failures.h"
#include "moe_ep/quant/scales.h"

namespace moe_ep::cpu {
namespace {

// Whether all ranks may go on with this dispatch; else the stream is in failure. All find the same,
// for all see all heads.
bool CheckHeads(const Exec& exec, const DispatchReceiveCall& call) {
  const Buffer& buffer = *call.buffer;
  const auto head_of = [&](int source) -> const DispatchHead& {
    return buffer.Head(buffer.routes.rank(), call.slot, source);
  };
  const auto* first = reinterpret_cast<const int64_t*>(&head_of(0).arguments);
  for (int source = 0; source < buffer.routes.world_size(); ++source) {
    const auto* others = reinterpret_cast<const int64_t*>(&head_of(source).arguments);
    for (int i = 0; i < kNumSharedArguments; ++i) {
      if (first[i] == others[i]) continue;
      FailWith(exec, DescribeMismatch, i, first[i], others[i], source);
      return false;
    }
  }
  for (int source = 0; source < buffer.routes.world_size(); ++source) {
    const DispatchHead& head = head_of(source);
    if (head.invalid_token < 0) continue;
    FailWith(exec, DescribeInvalidId, source, head.invalid_token, head.invalid_id,
             head.arguments.experts);
    return false;
  }
  return true;
}

class Receiver {
 public:
  explicit Receiver(const DispatchReceiveCall& call)
      : call_(call),
        buffer_(*call.buffer),
        rows_(call.src_info.size(1)),
        header_bytes_(HeaderBytes(buffer_.layout.max_topk)),
        first_(static_cast<size_t>(buffer_.routes.world_size()) + 1) {}

  // Gives every selection its row: inside an expert by source rank, then by token. An expert gets a
  // token's row once, however often the token names it.
  void PlaceRows() {
    const int ranks = buffer_.routes.world_size();
    const int64_t experts = call_.recv_count.size(0);
    std::vector<int32_t> filled(static_cast<size_t>(experts));
    std::vector<int32_t> begin(filled.size());
    for (int source = 0; source < ranks; ++source) {
      begin = filled;
      const int64_t count = Head(source).count;
      call_.received.num_messages.data<int32_t>()[source] = static_cast<int32_t>(count);
      first_[static_cast<size_t>(source) + 1] = first_[static_cast<size_t>(source)] + count;
      for (int64_t index = 0; index < count; ++index) PlaceMessage(source, index, &filled);
      for (int64_t expert = 0; expert < experts; ++expert) {
        const auto e = static_cast<size_t>(expert);
        call_.layout_range.data<int64_t>()[expert * ranks + source] =
            (int64_t{begin[e]} << 32) | (filled[e] - begin[e]);
      }
    }
    std::memcpy(call_.recv_count.data(), filled.data(), filled.size() * sizeof(int32_t));
    if (!call_.recv_stats) return;
    for (size_t expert = 0; expert < filled.size(); ++expert)
      call_.recv_stats.data<int32_t>()[expert] += filled[expert];
  }

  // Rank-major: a message's row is that of its number. Experts are told by ids instead.
  void KeepOrder() {
    const int ranks = buffer_.routes.world_size();
    for (int source = 0; source < ranks; ++source) {
      const int64_t count = Head(source).count;
      call_.received.num_messages.data<int32_t>()[source] = static_cast<int32_t>(count);
      call_.recv_count.data<int32_t>()[source] = static_cast<int32_t>(count);
      first_[static_cast<size_t>(source) + 1] = first_[static_cast<size_t>(source)] + count;
    }
    // Rows that did not come must not look like those of an earlier dispatch.
    std::memset(call_.recv_topk_idx.data(), 0xff,
                static_cast<size_t>(call_.recv_topk_idx.numel()) * sizeof(int32_t));
    if (call_.recv_topk_weights)
      std::memset(call_.recv_topk_weights.data(), 0,
                  static_cast<size_t>(call_.recv_topk_weights.numel()) * sizeof(float));
  }

  int64_t num_messages() const { return first_.back(); }

  // The rows of a message; messages count through all sources.
  void Unpack(int64_t message) const {
    int source = 0;
    while (first_[static_cast<size_t>(source) + 1] <= message) ++source;
    const int64_t index = message - first_[static_cast<size_t>(source)];
    MessageHeader& header = buffer_.Message(buffer_.routes.rank(), call_.slot, source, index);
    const uint8_t* row = buffer_.RowOf(header);
    if (call_.arguments.rank_major != 0) {
      std::memcpy(&Origin(source, index), &header, static_cast<size_t>(header_bytes_));
      PutRouting(header, source * rows_ + index);
      return PutRow(row, source * rows_ + index);
    }
    const MessageHeader& origin = Origin(source, index);
    for (int32_t i = 0; i < origin.count; ++i) {
      const int32_t target = origin.selections()[i].expert;
      if (!SeenBefore(origin, i)) PutRow(row, target);
    }
  }

 private:
  const DispatchHead& Head(int source) const {
    return buffer_.Head(buffer_.routes.rank(), call_.slot, source);
  }
  MessageHeader& Origin(int source, int64_t index) const {
    const int64_t place = source * buffer_.layout.max_tokens + index;
    return *reinterpret_cast<MessageHeader*>(call_.received.origins.data<uint8_t>() +
                                             place * header_bytes_);
  }
  static bool SeenBefore(const MessageHeader& header, int32_t selection) {
    for (int32_t i = 0; i < selection; ++i)
      if (header.selections()[i].expert == header.selections()[selection].expert) return true;
    return false;
  }

  void PlaceMessage(int source, int64_t index, std::vector<int32_t>* filled) {
    const MessageHeader& header = buffer_.Message(buffer_.routes.rank(), call_.slot, source, index);
    MessageHeader& origin = Origin(source, index);
    std::memcpy(&origin, &header, static_cast<size_t>(header_bytes_));
    for (int32_t i = 0; i < header.count; ++i) {
      const int32_t expert = header.selections()[i].expert;
      int32_t& end = (*filled)[static_cast<size_t>(expert)];
      const int64_t first = expert * rows_;
      // A repeated expert was the last one that this message gave a row of that expert.
      const int32_t row = SeenBefore(header, i) ? end - 1 : end++;
      origin.selections()[i].expert = static_cast<int32_t>(first + row);
      call_.src_info.data<int32_t>()[first + row] = header.token;
    }
  }

  void PutRouting(const MessageHeader& header, int64_t target) const {
    const int64_t topk = call_.recv_topk_idx.size(2);
    call_.src_info.data<int32_t>()[target] = header.token;
    for (int32_t i = 0; i < header.count; ++i) {
      const Selection& selection = header.selections()[i];
      const int64_t at = target * topk + selection.slot;
      call_.recv_topk_idx.data<int32_t>()[at] = selection.expert;
      if (call_.recv_topk_weights) call_.recv_topk_weights.data<float>()[at] = selection.weight;
    }
  }

  void PutRow(const uint8_t* row, int64_t target) const {
    const int64_t hidden = call_.recv_x.size(2);
    if (!call_.recv_scales) {
      std::memcpy(call_.recv_x.data<uint16_t>() + target * hidden, row,
                  static_cast<size_t>(hidden) * 2);
      return;
    }
    std::memcpy(call_.recv_x.data<uint8_t>() + target * hidden, row, static_cast<size_t>(hidden));
    const int64_t groups = (hidden + kGroupSize - 1) / kGroupSize;
    const int64_t columns = call_.recv_scales.size(2);
    const int64_t expert = target / rows_;  // or source
    uint8_t* first = call_.recv_scales.data<uint8_t>() +
                     (expert * columns * rows_ + target % rows_) * int64_t{4};
    const bool packed = call_.recv_scales.dtype() == DType::kI32;
    const ScaleRow scales = {first, rows_ * int64_t{4}, packed};
    scales.Store(0, groups, reinterpret_cast<const float*>(row + (hidden + 3) / 4 * 4));
    scales.StorePadding(groups);
  }

  const DispatchReceiveCall& call_;
  const Buffer& buffer_;
  int64_t rows_;  // of an expert, or of a source
  int64_t header_bytes_;
  std::vector<int64_t> first_;  // message of each source, counted through all
};

}  // namespace

void DispatchReceive(const Exec& exec, const DispatchReceiveCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  SlotState& state = buffer.slots[call.slot];
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kMessages, state.epoch,
                         DeadlineAfter(call.timeout_ms), kDispatchOperation, "messages",
                         call.wait_stats.data<int64_t>()))
    return;
  if (CheckHeads(exec, call)) {
    Receiver receiver(call);
    if (call.arguments.rank_major != 0) {
      receiver.KeepOrder();
    } else {
      receiver.PlaceRows();
    }
    exec.ParallelFor(receiver.num_messages(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t message = begin; message < end; ++message) receiver.Unpack(message);
    });
    state.received = state.epoch;
  }
  buffer.SignalAll(call.slot, SignalKind::kFree, state.epoch);
}

}  // namespace moe_ep::cpu
