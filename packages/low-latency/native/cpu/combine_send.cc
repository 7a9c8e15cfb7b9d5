#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/logfmt_rows.h"
#include "cpu/weighted_sum.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/prefetch_row.h"

namespace moe_ep::cpu {
namespace {

class Answerer {
 public:
  explicit Answerer(const CombineCall& call)
      : call_(call),
        buffer_(*call.buffer),
        placement_(call.experts, buffer_.routes.world_size()),
        hidden_(call.x.size(2)),
        topk_(call.topk_idx.size(1)),
        stride_(PaddedTopk(topk_)),
        sum_(call.logfmt && call.weighted ? static_cast<size_t>(hidden_) : 0) {}

  // The first bytes of the rows that a message asks for.
  void Prefetch(int64_t message) const {
    const int32_t* rows = RowsOf(message);
    for (int64_t slot = 0; slot < topk_; ++slot)
      if (rows[slot] >= 0) PrefetchRow(Row(rows[slot]), std::min<int64_t>(hidden_ * 2, 1024));
  }

  // What this rank owes one token of a source: its row, rank-major; else the sum of its rows where
  // weights are known here, and without them a row for each selection.
  void Answer(int source, int64_t message) {
    const int64_t token = OriginOf(message) % buffer_.layout.max_tokens;
    if (call_.rank_major) {
      const int64_t index = message - call_.received.first.data<int32_t>()[source];
      return Copy(Row(source * buffer_.layout.max_tokens + index),
                  Result(source, token, PlaceOf(source, token)));
    }
    const int32_t* rows = RowsOf(message);
    Term terms[kMaxTopk];
    int64_t count = 0;
    const float* weights =
        buffer_.Weights(buffer_.routes.rank(), call_.slot, source) + token * stride_;
    for (int64_t slot = 0; slot < topk_; ++slot) {
      if (rows[slot] < 0) continue;
      if (call_.weighted) {
        terms[count++] = {Row(rows[slot]), weights[slot]};
      } else {
        Copy(Row(rows[slot]), Result(source, token, slot));
      }
    }
    if (!call_.weighted) return;
    uint16_t* const result = Result(source, token, PlaceOf(source, token));
    SumRows<true>(terms, count, hidden_, call_.logfmt ? sum_.data() : result);
    if (call_.logfmt) EncodeLogRow(sum_.data(), hidden_, result);
  }

 private:
  int32_t OriginOf(int64_t message) const {
    return call_.received.messages.data<int32_t>()[message];
  }
  const int32_t* RowsOf(int64_t message) const {
    return call_.received.rows.data<int32_t>() + OriginOf(message) * stride_;
  }
  const uint16_t* Row(int64_t row) const { return call_.x.data<uint16_t>() + row * hidden_; }
  uint16_t* Result(int source, int64_t token, int64_t place) const {
    return buffer_.Result(source, call_.slot, token, place);
  }
  void Copy(const uint16_t* from, uint16_t* to) const {
    if (call_.logfmt) return EncodeLogRow(from, hidden_, to);
    std::memcpy(to, from, static_cast<size_t>(hidden_) * 2);
  }

  // How many lower ranks answer for this token, too; or this rank.
  int64_t PlaceOf(int source, int64_t token) const {
    const int rank = buffer_.routes.rank();
    if (buffer_.layout.results_by_rank != 0) return rank;
    const int32_t* ids = buffer_.Ids(rank, call_.slot, source) + token * stride_;
    int64_t ranks[kMaxTopk];
    int64_t count = 0;
    for (int64_t slot = 0; slot < topk_; ++slot) {
      if (ids[slot] < 0) continue;
      const int64_t other = placement_.RankOf(ids[slot]);
      if (other < rank && std::find(ranks, ranks + count, other) == ranks + count)
        ranks[count++] = other;
    }
    return count;
  }

  const CombineCall& call_;
  const Buffer& buffer_;
  ExpertPlacement placement_;
  int64_t hidden_;
  int64_t topk_;
  int64_t stride_;
  std::vector<uint16_t> sum_;  // before it is encoded
};

}  // namespace

bool CombineSend(const Exec& exec, const CombineCall& call) {
  const Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec) || !buffer.CheckReceived(exec, call.slot)) return false;
  const uint64_t epoch = buffer.slots[call.slot].epoch;
  const auto* first = call.received.first.data<int32_t>();
  for (int step = 0; step < buffer.routes.world_size(); ++step) {
    const int source = buffer.PeerAt(step);
    exec.ParallelFor(first[source + 1] - first[source], 4, [&](int64_t begin, int64_t end) {
      Answerer answerer(call);
      for (int64_t i = first[source] + begin; i < first[source] + end; ++i) {
        if (i + 1 < first[source] + end && !call.rank_major) answerer.Prefetch(i + 1);
        answerer.Answer(source, i);
      }
    });
    buffer.routes.Flush();
    buffer.routes.Signal(source,
                         buffer.SignalIndex(call.slot, SignalKind::kResults, buffer.routes.rank()),
                         SignalOf(epoch, call.logfmt ? kLogRows : kBf16Rows));
  }
  return true;
}

}  // namespace moe_ep::cpu
