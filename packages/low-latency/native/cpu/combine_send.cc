#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/weighted_sum.h"
#include "moe_ep/prefetch_row.h"

namespace moe_ep::cpu {
namespace {

// The first bytes of the rows that the next message asks for.
void PrefetchRowsOf(const CombineSendCall& call, const MessageHeader& origin) {
  const int64_t hidden = call.x.size(2);
  for (int32_t i = 0; i < origin.count; ++i)
    PrefetchRow(call.x.data<uint16_t>() + int64_t{origin.selections()[i].expert} * hidden,
                std::min<int64_t>(hidden * 2, 1024));
}

// What this rank owes one token of a source: its row, rank-major; else the sum of its rows where
// weights are known here, and without them a row for each selection.
void Answer(const CombineSendCall& call, int source, int64_t index, const MessageHeader& origin) {
  const Buffer& buffer = *call.buffer;
  const int64_t hidden = call.x.size(2);
  const auto row_of = [&](int32_t i) {
    return call.x.data<uint16_t>() + int64_t{origin.selections()[i].expert} * hidden;
  };
  if (call.rank_major) {
    const auto* row =
        call.x.data<uint16_t>() + (source * buffer.layout.max_tokens + index) * hidden;
    std::memcpy(buffer.Result(source, call.slot, origin.token, origin.place), row,
                static_cast<size_t>(hidden) * 2);
    return;
  }
  if (!call.weighted) {
    for (int32_t i = 0; i < origin.count; ++i) {
      const int32_t slot = origin.selections()[i].slot;
      std::memcpy(buffer.Result(source, call.slot, origin.token, slot), row_of(i),
                  static_cast<size_t>(hidden) * 2);
    }
    return;
  }
  Term terms[kMaxTopk];
  for (int32_t i = 0; i < origin.count; ++i) terms[i] = {row_of(i), origin.selections()[i].weight};
  SumRows<true>(terms, origin.count, hidden,
                buffer.Result(source, call.slot, origin.token, origin.place));
}

}  // namespace

void CombineSend(const Exec& exec, const CombineSendCall& call) {
  const Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec) || !buffer.CheckReceived(exec, call.slot)) return;
  const int64_t header_bytes = HeaderBytes(buffer.layout.max_topk);
  const uint64_t epoch = buffer.slots[call.slot].epoch;
  for (int step = 0; step < buffer.routes.world_size(); ++step) {
    const int source = buffer.PeerAt(step);
    const uint8_t* origins =
        call.received.origins.data<uint8_t>() + source * buffer.layout.max_tokens * header_bytes;
    const int64_t count = call.received.num_messages.data<int32_t>()[source];
    const auto origin = [&](int64_t i) -> const MessageHeader& {
      return *reinterpret_cast<const MessageHeader*>(origins + i * header_bytes);
    };
    exec.ParallelFor(count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i + 1 < end && !call.rank_major) PrefetchRowsOf(call, origin(i + 1));
        Answer(call, source, i, origin(i));
      }
    });
    buffer.routes.Flush();
    buffer.routes.Signal(
        source, buffer.SignalIndex(call.slot, SignalKind::kResults, buffer.routes.rank()), epoch);
  }
}

}  // namespace moe_ep::cpu
