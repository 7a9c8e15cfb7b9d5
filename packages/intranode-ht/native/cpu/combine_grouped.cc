#include "cpu/combine_grouped.h"

#include <algorithm>
#include <vector>

#include "cpu/meet_for_combine.h"
#include "cpu/row_copy.h"
#include "cpu/row_formats.h"
#include "moe_ep/isa.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"
#include "moe_ep/prefetch_row.h"

namespace moe_ep::cpu {
namespace {

// One row that stands for a token, with its weight. Terms of one rank follow one another.
template <typename Storage>
struct Term {
  const Storage* row;
  float weight;
  bool first_of_rank;
};

// For each rank the weighted sum of its rows from +0, rounded to the format as an unpermute would
// leave it; then the sum of those over ranks, the first starting it, rounded once more.
template <typename Format>
MOE_EP_CLONES void SumTerms(const Term<typename Format::Storage>* terms, int count, int64_t columns,
                            typename Format::Storage* out, const RowCopy& copy) {
  using Storage = typename Format::Storage;
  Storage rounded[kColumnBlock];
  float total[kColumnBlock];
  float partial[kColumnBlock];
  for (int64_t begin = 0; begin < columns; begin += kColumnBlock) {
    const int64_t size = std::min(kColumnBlock, columns - begin);
    const int64_t ahead = std::min(kColumnBlock, columns - begin - size);
    for (int term = 0; term < count; ++term) {
      PrefetchRow(terms[term].row + begin + size, ahead * static_cast<int64_t>(sizeof(Storage)));
    }
    for (int64_t i = 0; i < size; ++i) total[i] = 0.0f;
    bool first_rank = true;
    for (int term = 0; term < count;) {
      for (int64_t i = 0; i < size; ++i) partial[i] = 0.0f;
      do {
        const typename Format::Storage* row = terms[term].row + begin;
        const float weight = terms[term].weight;
        for (int64_t i = 0; i < size; ++i) partial[i] += weight * Format::Load(row[i]);
        ++term;
      } while (term < count && !terms[term].first_of_rank);
      if (first_rank) {
        for (int64_t i = 0; i < size; ++i) total[i] = Format::Load(Format::Store(partial[i]));
      } else {
        for (int64_t i = 0; i < size; ++i) total[i] += Format::Load(Format::Store(partial[i]));
      }
      first_rank = false;
    }
    for (int64_t i = 0; i < size; ++i) rounded[i] = Format::Store(total[i]);
    copy.Piece(out + begin, rounded, size * static_cast<int64_t>(sizeof(Storage)));
  }
}

template <typename Format>
void SumTokens(const CombineGroupedCall& call, const RowCopy& copy, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  const Buffer& buffer = *call.buffer;
  const ExpertPlacement placement{call.experts, buffer.routes.world_size()};
  const TopkIds ids(call.topk_idx);
  const int64_t topk = call.topk_idx.size(1);
  const int64_t columns = call.out.size(1);
  std::vector<Term<Storage>> terms(static_cast<size_t>(topk));
  for (int64_t token = begin; token < end; ++token) {
    int count = 0;
    for (int rank = 0; rank < placement.ranks; ++rank) {
      bool first = true;
      for (int64_t slot = token * topk; slot < (token + 1) * topk; ++slot) {
        if (ids[slot] < 0 || placement.RankOf(ids[slot]) != rank) continue;
        const int64_t row = call.slot_row.data<int32_t>()[slot];
        terms[static_cast<size_t>(count++)] = {
            reinterpret_cast<const Storage*>(buffer.Rows(rank, call.slot)) + row * columns,
            call.topk_weights.data<float>()[slot], first};
        first = false;
      }
    }
    SumTerms<Format>(terms.data(), count, columns, call.out.data<Storage>() + token * columns,
                     copy);
  }
}

}  // namespace

void CombineGrouped(const Exec& exec, const CombineGroupedCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  const uint64_t epoch = ++buffer.slots[call.slot].combine_epoch;
  int64_t rows = 0;
  for (int64_t i = 0; i < call.num_recv_tokens_per_expert.numel(); ++i) {
    rows += call.num_recv_tokens_per_expert.data<int32_t>()[i];
  }
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  StageBytes(exec, call.x.data<uint8_t>(), buffer.Rows(buffer.routes.rank(), call.slot),
             rows * row_bytes);
  const CombineArguments arguments = {call.x.size(1), static_cast<int64_t>(call.x.dtype()), 0};
  if (!MeetForCombine(exec, buffer, call.slot, arguments, epoch, deadline)) return;
  const RowCopy copy(call.out.size(1) * BitsOf(call.out.dtype()) / 8, call.out.size(0));
  exec.ParallelFor(call.out.size(0), 8, [&](int64_t begin, int64_t end) {
    WithFormat(call.out.dtype(),
               [&](auto format) { SumTokens<decltype(format)>(call, copy, begin, end); });
    copy.Finish();
  });
  buffer.SignalAll(call.slot, SignalKind::kCombineRead, epoch);
}

}  // namespace moe_ep::cpu
