#include <algorithm>

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

// Whether all ranks have results and encode them alike; else the stream is in failure. All find the
// same.
bool CheckNotes(const Exec& exec, const CombineCall& call, RankBits present) {
  const Buffer& buffer = *call.buffer;
  const auto of = [&](int source) -> int64_t {
    const uint64_t index = buffer.SignalIndex(call.slot, SignalKind::kResults, source);
    const auto& cell = buffer.routes.signal(buffer.routes.rank(), index);
    return NoteOf(cell.value.load(std::memory_order_relaxed));
  };
  for (int source = 0; source < buffer.routes.world_size(); ++source) {
    if (!TakesPart(present, source) || of(source) < kRefusal) continue;
    FailWith(exec, DescribeCombineRefusal, source, of(source) - kRefusal);
    return false;
  }
  int base = 0;
  while (base < buffer.routes.world_size() && !TakesPart(present, base)) ++base;
  for (int source = base + 1; source < buffer.routes.world_size(); ++source) {
    if (!TakesPart(present, source) || of(source) == of(base)) continue;
    FailWith(exec, DescribeEncodings, of(base), of(source), source, base);
    return false;
  }
  return true;
}

class Summer {
 public:
  Summer(const CombineCall& call, RankBits present)
      : call_(call),
        ids_(call.topk_idx),
        placement_(call.experts, call.buffer->routes.world_size()),
        present_(present) {}

  void Sum(int64_t token) const {
    const int64_t columns = call_.out.size(1);
    uint16_t* out = call_.out.data<uint16_t>() + token * columns;
    Term terms[kMaxTopk];
    const int64_t count = call_.weighted ? TermsOfRanks(token, terms) : TermsOfSlots(token, terms);
    if (call_.logfmt) return SumLogRows(terms, count, columns, out);
    if (call_.weighted) return SumRows<false>(terms, count, columns, out);
    SumRows<true>(terms, count, columns, out);
  }

 private:
  const uint16_t* Row(int64_t token, int64_t place) const {
    return call_.buffer->Result(call_.buffer->routes.rank(), call_.slot, token, place);
  }

  int64_t TermsOfSlots(int64_t token, Term* terms) const {
    const int64_t topk = call_.topk_idx.size(1);
    int64_t count = 0;
    for (int64_t slot = 0; slot < topk; ++slot) {
      const int64_t at = token * topk + slot;
      const int64_t id = ids_[at];
      if (id < 0 || !TakesPart(present_, static_cast<int>(placement_.RankOf(id)))) continue;
      terms[count++] = {Row(token, slot), call_.topk_weights.data<float>()[at]};
    }
    return count;
  }

  // One row from each rank that the token went to, in the order of ranks.
  // Rows have places for all ranks that the token went to, in their order, also for those whose
  // rows have not come.
  int64_t TermsOfRanks(int64_t token, Term* terms) const {
    const int64_t topk = call_.topk_idx.size(1);
    int ranks[kMaxTopk];
    int64_t places = 0;
    for (int64_t slot = 0; slot < topk; ++slot) {
      const int64_t id = ids_[token * topk + slot];
      if (id < 0) continue;
      const auto rank = static_cast<int>(placement_.RankOf(id));
      if (std::find(ranks, ranks + places, rank) == ranks + places) ranks[places++] = rank;
    }
    std::sort(ranks, ranks + places);
    const bool by_rank = call_.buffer->layout.results_by_rank != 0;
    int64_t count = 0;
    for (int64_t place = 0; place < places; ++place)
      if (TakesPart(present_, ranks[place]))
        terms[count++] = {Row(token, by_rank ? ranks[place] : place), 1.0f};
    return count;
  }

  const CombineCall& call_;
  TopkIds ids_;
  ExpertPlacement placement_;
  RankBits present_;
};

}  // namespace

void CombineReceive(const Exec& exec, const CombineCall& call) {
  const Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec) || !buffer.CheckReceived(exec, call.slot)) return;
  RankBits present = buffer.slots[call.slot].present & buffer.Unmasked();
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kResults,
                         SignalOf(buffer.slots[call.slot].epoch, 0), DeadlineAfter(call.timeout_ms),
                         kCombineOperation, "rows", &present, call.wait_stats.data<int64_t>()))
    return;
  if (!CheckNotes(exec, call, present) || !CheckIds(exec, call)) return;
  const Summer summer(call, present);
  exec.ParallelFor(call.out.size(0), 2, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) summer.Sum(token);
  });
}

}  // namespace moe_ep::cpu
