#include "cpu/kernels.h"
#include "cpu/logfmt_rows.h"
#include "cpu/weighted_sum.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cpu {
namespace {

// Whether all ids are experts' or -1; else the stream is in failure. Placement knows no others.
bool CheckIds(const Exec& exec, const CombineCall& call) {
  const TopkIds ids(call.topk_idx);
  const int64_t wrong = FindInvalidId(ids, call.topk_idx.numel(), call.experts);
  if (wrong < 0) return true;
  FailWith(exec, DescribeCombineId, call.buffer->routes.rank(), wrong / call.topk_idx.size(1),
           ids[wrong], call.experts);
  return false;
}

// Whether all ranks encode results alike; else the stream is in failure. All find the same.
bool CheckEncodings(const Exec& exec, const CombineCall& call) {
  const Buffer& buffer = *call.buffer;
  const auto of = [&](int source) -> int64_t {
    const uint64_t index = buffer.SignalIndex(call.slot, SignalKind::kResults, source);
    const auto& cell = buffer.routes.signal(buffer.routes.rank(), index);
    return cell.value.load(std::memory_order_relaxed) % kResultEncodings;
  };
  for (int source = 1; source < buffer.routes.world_size(); ++source) {
    if (of(source) == of(0)) continue;
    FailWith(exec, DescribeEncodings, of(0), of(source), source);
    return false;
  }
  return true;
}

class Summer {
 public:
  explicit Summer(const CombineCall& call)
      : call_(call),
        ids_(call.topk_idx),
        placement_(call.experts, call.buffer->routes.world_size()) {}

  void Sum(int64_t token) const {
    const int64_t columns = call_.out.size(1);
    uint16_t* out = call_.out.data<uint16_t>() + token * columns;
    if (call_.logfmt) return SumLog(token, columns, out);
    Term terms[kMaxTopk];
    if (call_.weighted) {
      // One row from each rank that the token went to, in the order of ranks.
      const int64_t places = NumRanksOf(token);
      for (int64_t place = 0; place < places; ++place) terms[place] = {Row(token, place), 1.0f};
      return SumRows<false>(terms, places, columns, out);
    }
    const int64_t topk = call_.topk_idx.size(1);
    int64_t count = 0;
    for (int64_t slot = 0; slot < topk; ++slot) {
      if (ids_[token * topk + slot] < 0) continue;
      terms[count++] = {Row(token, slot), call_.topk_weights.data<float>()[token * topk + slot]};
    }
    SumRows<true>(terms, count, columns, out);
  }

 private:
  // The same of results in LogFMT-10.
  void SumLog(int64_t token, int64_t columns, uint16_t* out) const {
    LogTerm terms[kMaxTopk];
    int64_t count = 0;
    if (call_.weighted) {
      count = NumRanksOf(token);
      for (int64_t place = 0; place < count; ++place) terms[place] = {Row(token, place), 1.0f};
    } else {
      const int64_t topk = call_.topk_idx.size(1);
      for (int64_t slot = 0; slot < topk; ++slot) {
        const int64_t at = token * topk + slot;
        if (ids_[at] >= 0)
          terms[count++] = {Row(token, slot), call_.topk_weights.data<float>()[at]};
      }
    }
    SumLogRows(terms, count, columns, out);
  }

  const uint16_t* Row(int64_t token, int64_t place) const {
    return call_.buffer->Result(call_.buffer->routes.rank(), call_.slot, token, place);
  }

  int64_t NumRanksOf(int64_t token) const {
    const int64_t topk = call_.topk_idx.size(1);
    int64_t ranks[kMaxTopk];
    int64_t count = 0;
    for (int64_t slot = 0; slot < topk; ++slot) {
      const int64_t id = ids_[token * topk + slot];
      if (id < 0) continue;
      const int64_t rank = placement_.RankOf(id);
      int64_t known = 0;
      while (known < count && ranks[known] != rank) ++known;
      if (known == count) ranks[count++] = rank;
    }
    return count;
  }

  const CombineCall& call_;
  TopkIds ids_;
  ExpertPlacement placement_;
};

}  // namespace

void CombineReceive(const Exec& exec, const CombineCall& call) {
  const Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec) || !buffer.CheckReceived(exec, call.slot)) return;
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kResults,
                         ResultsSignal(buffer.slots[call.slot].epoch, false),
                         DeadlineAfter(call.timeout_ms), kCombineOperation, "rows",
                         call.wait_stats.data<int64_t>()))
    return;
  if (!CheckEncodings(exec, call) || !CheckIds(exec, call)) return;
  const Summer summer(call);
  exec.ParallelFor(call.out.size(0), 2, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) summer.Sum(token);
  });
}

}  // namespace moe_ep::cpu
