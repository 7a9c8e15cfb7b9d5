#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/check_heads.h"
#include "cpu/kernels.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/quant/scales.h"
#include "moe_ep/stream_row.h"

namespace moe_ep::cpu {
namespace {

// What this rank finds in the tables of all sources.
class Receiver {
 public:
  explicit Receiver(const DispatchCall& call)
      : call_(call),
        buffer_(*call.buffer),
        rows_(call.src_info.size(1)),
        topk_(call.arguments.topk),
        stride_(PaddedTopk(topk_)) {
    const ExpertPlacement placement(call.arguments.experts, buffer_.routes.world_size());
    begin_ = static_cast<int32_t>(placement.BeginOf(buffer_.routes.rank()));
    end_ = begin_ + static_cast<int32_t>(placement.CountOf(buffer_.routes.rank()));
  }

  // Gives every selection its row: inside an expert by source rank, then by token. An expert gets a
  // token's row once, however often the token names it.
  void PlaceRows() {
    const int ranks = buffer_.routes.world_size();
    std::vector<int32_t> filled(static_cast<size_t>(end_ - begin_));
    std::vector<int32_t> begin(filled.size());
    for (int source = 0; source < ranks; ++source) {
      begin = filled;
      const bool present = TakesPart(buffer_.slots[call_.slot].present, source);
      const int64_t tokens = present ? Head(source).tokens : 0;
      const int32_t messages_before = num_messages_;
      for (int64_t token = 0; token < tokens; ++token) PlaceToken(source, token, &filled);
      call_.received.first.data<int32_t>()[source + 1] = num_messages_;
      if (call_.arguments.rank_major != 0) {
        Count(source, num_messages_ - messages_before);
        continue;
      }
      for (size_t e = 0; e < filled.size(); ++e) {
        call_.layout_range.data<int64_t>()[static_cast<int64_t>(e) * ranks + source] =
            (int64_t{begin[e]} << 32) | (filled[e] - begin[e]);
      }
    }
    call_.received.first.data<int32_t>()[0] = 0;
    if (call_.arguments.rank_major == 0)
      for (size_t e = 0; e < filled.size(); ++e) Count(static_cast<int64_t>(e), filled[e]);
    // All ranks receive about as much as this one, and share the caches.
    stream_ = WorthStreaming(RowBytes(), num_rows_ * ranks);
  }

  int64_t num_messages() const { return num_messages_; }

  // Rank-major: rows that did not come must not look like those of an earlier dispatch.
  void ClearRouting() const {
    std::memset(call_.recv_topk_idx.data(), 0xff,
                static_cast<size_t>(call_.recv_topk_idx.numel()) * sizeof(int32_t));
    if (call_.recv_topk_weights)
      std::memset(call_.recv_topk_weights.data(), 0,
                  static_cast<size_t>(call_.recv_topk_weights.numel()) * sizeof(float));
  }

  // The rows of a message; messages count through all sources.
  void Unpack(int64_t message) const {
    const int32_t origin = call_.received.messages.data<int32_t>()[message];
    const auto source = static_cast<int>(origin / buffer_.layout.max_tokens);
    const int64_t token = origin % buffer_.layout.max_tokens;
    if (call_.arguments.rank_major != 0) {
      const int64_t target =
          source * rows_ + message - call_.received.first.data<int32_t>()[source];
      PutRouting(source, token, target);
      return PutRow(MessageOf(source, token, 0), target);
    }
    const int32_t* rows = RowsOf(source, token);
    const bool per_selection = buffer_.layout.messages_per_token > 1;
    for (int64_t slot = 0; slot < topk_; ++slot) {
      if (rows[slot] < 0 || SeenBefore(rows, slot)) continue;
      PutRow(MessageOf(source, token, per_selection ? slot : 0), rows[slot]);
    }
  }

  // The scales of an expert's rows, rank-major of a source's. Columns are whole pages apart, so
  // that each scale of a row is in a cache line of its own: several rows are written at a time.
  void PutScales(int64_t group) const {
    constexpr int64_t kBlock = 16;  // f32 numbers of a cache line
    const int64_t stride = rows_ * int64_t{4};
    uint8_t* column =
        call_.recv_scales.data<uint8_t>() + group * call_.recv_scales.size(2) * stride;
    const int64_t groups = NumGroups(call_.arguments.hidden);
    const bool packed = call_.recv_scales.dtype() == DType::kI32;
    const float* scales[kBlock];
    int64_t first = 0;
    int64_t count = 0;
    const auto put = [&] {
      const auto row = [&](int64_t i) {
        return ScaleRow{column + (first + i) * int64_t{4}, stride, packed};
      };
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t i = 0; i < count; ++i) row(i).Store(g, 1, scales[i] + g);
      for (int64_t i = 0; i < count; ++i) row(i).StorePadding(groups);
      first += count;
      count = 0;
    };
    ForRowsOf(group, [&](const float* of_row) {
      scales[count++] = of_row;
      if (count == kBlock) put();
    });
    put();
  }

 private:
  const DispatchHead& Head(int source) const {
    return buffer_.Head(buffer_.routes.rank(), call_.slot, source);
  }
  const uint8_t* MessageOf(int source, int64_t token, int64_t selection) const {
    return buffer_.Message(buffer_.routes.rank(), call_.slot, source, token, selection);
  }
  const int32_t* IdsOf(int source, int64_t token) const {
    return buffer_.Ids(buffer_.routes.rank(), call_.slot, source) + token * stride_;
  }
  int32_t* RowsOf(int source, int64_t token) const {
    return call_.received.rows.data<int32_t>() +
           (source * buffer_.layout.max_tokens + token) * stride_;
  }
  static bool SeenBefore(const int32_t* values, int64_t slot) {
    return std::find(values, values + slot, values[slot]) != values + slot;
  }

  void Count(int64_t group, int32_t count) {
    num_rows_ += count;
    call_.recv_count.data<int32_t>()[group] = count;
    if (call_.recv_stats) call_.recv_stats.data<int32_t>()[group] += count;
  }

  void PlaceToken(int source, int64_t token, std::vector<int32_t>* filled) {
    const int32_t* ids = IdsOf(source, token);
    int32_t* rows = RowsOf(source, token);
    bool any = false;
    for (int64_t slot = 0; slot < topk_; ++slot) {
      rows[slot] = -1;
      if (ids[slot] < begin_ || ids[slot] >= end_) continue;
      any = true;
      if (call_.arguments.rank_major != 0) continue;
      const int32_t expert = ids[slot] - begin_;
      int32_t& end = (*filled)[static_cast<size_t>(expert)];
      const int64_t first = expert * rows_;
      // A repeated expert was given this token's row last.
      const int32_t row = SeenBefore(ids, slot) ? end - 1 : end++;
      rows[slot] = static_cast<int32_t>(first + row);
      call_.src_info.data<int32_t>()[first + row] = static_cast<int32_t>(token);
    }
    if (!any) return;
    call_.received.messages.data<int32_t>()[num_messages_++] =
        static_cast<int32_t>(source * buffer_.layout.max_tokens + token);
  }

  void PutRouting(int source, int64_t token, int64_t target) const {
    call_.src_info.data<int32_t>()[target] = static_cast<int32_t>(token);
    const int32_t* ids = IdsOf(source, token);
    const float* weights =
        buffer_.Weights(buffer_.routes.rank(), call_.slot, source) + token * stride_;
    for (int64_t slot = 0; slot < topk_; ++slot) {
      if (ids[slot] < begin_ || ids[slot] >= end_) continue;
      const int64_t at = target * topk_ + slot;
      call_.recv_topk_idx.data<int32_t>()[at] = ids[slot] - begin_;
      if (call_.recv_topk_weights) call_.recv_topk_weights.data<float>()[at] = weights[slot];
    }
  }

  int64_t RowBytes() const { return CodeBytes(call_.format(), call_.arguments.hidden); }

  void PutRow(const uint8_t* row, int64_t target) const {
    const int64_t bytes = RowBytes();
    uint8_t* to = call_.recv_x.data<uint8_t>() + target * bytes;
    if (stream_) {
      StreamRow(to, row, bytes);
    } else {
      std::memcpy(to, row, static_cast<size_t>(bytes));
    }
    if (!HasByteScales(call_.format())) return;
    const int64_t count = NumByteScales(call_.format(), call_.arguments.hidden);
    std::memcpy(call_.recv_scales.data<uint8_t>() + target * count, row + bytes,
                static_cast<size_t>(count));
  }

  // Calls body(scales) for each row of an expert, rank-major of a source, in order.
  template <typename Body>
  void ForRowsOf(int64_t group, const Body& body) const {
    const int64_t hidden = call_.arguments.hidden;
    const auto scales_of = [&](int source, int64_t token, int64_t selection) {
      return reinterpret_cast<const float*>(MessageOf(source, token, selection) +
                                            ScalesOffset(hidden));
    };
    if (call_.arguments.rank_major != 0) {
      const auto source = static_cast<int>(group);
      const int32_t* first = call_.received.first.data<int32_t>() + source;
      for (int32_t message = first[0]; message < first[1]; ++message) {
        const int32_t origin = call_.received.messages.data<int32_t>()[message];
        body(scales_of(source, origin % buffer_.layout.max_tokens, 0));
      }
      return;
    }
    const int ranks = buffer_.routes.world_size();
    const bool per_selection = buffer_.layout.messages_per_token > 1;
    int64_t row = 0;
    for (int source = 0; source < ranks; ++source) {
      const int64_t range = call_.layout_range.data<int64_t>()[group * ranks + source];
      for (const int64_t end = row + (range & 0xffffffff); row < end; ++row) {
        const int64_t target = group * rows_ + row;
        const int64_t token = call_.src_info.data<int32_t>()[target];
        const int32_t* rows = RowsOf(source, token);
        const int64_t slot = per_selection ? std::find(rows, rows + topk_, target) - rows : 0;
        body(scales_of(source, token, slot));
      }
    }
  }

  const DispatchCall& call_;
  const Buffer& buffer_;
  int64_t rows_;  // of an expert, or of a source
  int64_t topk_;
  int64_t stride_;  // of tables
  int32_t begin_;   // experts of this rank
  int32_t end_;
  int32_t num_messages_ = 0;
  int64_t num_rows_ = 0;
  bool stream_ = false;
};

}  // namespace

void DispatchReceive(const Exec& exec, const DispatchCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  SlotState& state = buffer.slots[call.slot];
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kMessages, SignalOf(state.epoch, 0),
                         DeadlineAfter(call.timeout_ms), kDispatchOperation, "messages",
                         &state.present, call.wait_stats.data<int64_t>()))
    return;
  if (CheckHeads(exec, call)) {
    Receiver receiver(call);
    receiver.PlaceRows();
    if (call.arguments.rank_major != 0) receiver.ClearRouting();
    exec.ParallelFor(receiver.num_messages(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t message = begin; message < end; ++message) receiver.Unpack(message);
      FinishStreaming();
    });
    // Scales of bytes are rows, and went with those.
    if (call.recv_scales && !HasByteScales(call.format())) {
      exec.ParallelFor(call.recv_count.numel(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) receiver.PutScales(group);
      });
    }
    state.received = state.epoch;
  }
  buffer.SignalAll(call.slot, SignalKind::kFree, state.epoch);
}

}  // namespace moe_ep::cpu
