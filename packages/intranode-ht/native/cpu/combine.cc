#include "cpu/combine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/meet_for_combine.h"
#include "cpu/row_copy.h"
#include "cpu/row_formats.h"
#include "moe_ep/isa.h"
#include "moe_ep/prefetch_row.h"

namespace moe_ep::cpu {
namespace {

// The rows that stand for one token, in rank order, and what is added to their sum.
template <typename Storage>
struct Terms {
  std::vector<const Storage*> rows;
  std::vector<const Storage*> biases;
};

// Sum of the rows in order, the first one starting it (+0 without rows), then the biases; rounded
// once.
template <typename Format>
MOE_EP_CLONES void SumTerms(const Terms<typename Format::Storage>& terms, int64_t columns,
                            typename Format::Storage* out, const RowCopy& copy) {
  using Storage = typename Format::Storage;
  float sum[kColumnBlock];
  Storage rounded[kColumnBlock];
  for (int64_t begin = 0; begin < columns; begin += kColumnBlock) {
    const int64_t size = std::min(kColumnBlock, columns - begin);
    const int64_t ahead = std::min(kColumnBlock, columns - begin - size);
    for (const Storage* row : terms.rows)
      PrefetchRow(row + begin + size, ahead * static_cast<int64_t>(sizeof(Storage)));
    if (terms.rows.empty()) {
      std::fill_n(sum, size, 0.0f);
    } else {
      const Storage* first = terms.rows[0] + begin;
      for (int64_t i = 0; i < size; ++i) sum[i] = Format::Load(first[i]);
    }
    for (size_t source = 1; source < terms.rows.size(); ++source) {
      const Storage* row = terms.rows[source] + begin;
      for (int64_t i = 0; i < size; ++i) sum[i] += Format::Load(row[i]);
    }
    for (const Storage* bias : terms.biases) {
      const Storage* row = bias + begin;
      for (int64_t i = 0; i < size; ++i) sum[i] += Format::Load(row[i]);
    }
    for (int64_t i = 0; i < size; ++i) rounded[i] = Format::Store(sum[i]);
    copy.Piece(out + begin, rounded, size * static_cast<int64_t>(sizeof(Storage)));
  }
}

template <typename Storage>
void Collect(const CombineCall& call, int64_t token, Terms<Storage>* terms) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int64_t columns = call.out.size(1);
  const auto* head = call.send_head.data<int32_t>() + token * ranks;
  terms->rows.clear();
  terms->biases.clear();
  for (int rank = 0; rank < ranks; ++rank) {
    if (head[rank] < 0) continue;
    const auto* rows = reinterpret_cast<const Storage*>(buffer.Rows(rank, call.slot));
    terms->rows.push_back(rows + int64_t{head[rank]} * columns);
  }
  for (const Tensor& bias : call.bias) {
    if (bias) terms->biases.push_back(bias.data<Storage>() + token * columns);
  }
}

template <typename Format>
void SumTokens(const CombineCall& call, const RowCopy& copy, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  const int64_t columns = call.out.size(1);
  const int64_t block_bytes =
      std::min(kColumnBlock, columns) * static_cast<int64_t>(sizeof(Storage));
  Terms<Storage> terms;
  Terms<Storage> next;
  if (begin < end) Collect(call, begin, &next);
  for (int64_t token = begin; token < end; ++token) {
    std::swap(terms, next);
    if (token + 1 < end) {
      Collect(call, token + 1, &next);
      for (const Storage* row : next.rows) PrefetchRow(row, block_bytes);
    }
    SumTerms<Format>(terms, columns, call.out.data<Storage>() + token * columns, copy);
  }
}

// The same sum for the weights that each rank gives back.
void SumWeights(const CombineCall& call, int64_t begin, int64_t end) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int64_t topk = call.out_topk_weights.size(1);
  for (int64_t token = begin; token < end; ++token) {
    const auto* head = call.send_head.data<int32_t>() + token * ranks;
    for (int64_t slot = 0; slot < topk; ++slot) {
      float sum = 0.0f;
      bool first = true;
      for (int rank = 0; rank < ranks; ++rank) {
        if (head[rank] < 0) continue;
        const float weight = buffer.TopkWeights(rank, call.slot)[int64_t{head[rank]} * topk + slot];
        sum = first ? weight : sum + weight;
        first = false;
      }
      call.out_topk_weights.data<uint32_t>()[token * topk + slot] = CanonicalF32Bits(sum);
    }
  }
}

void Stage(const Exec& exec, const CombineCall& call) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int rank = buffer.routes.rank();
  // Inputs of worst-case size have rows that nobody asks for.
  const int64_t rows = call.rank_prefix_matrix.data<int32_t>()[(ranks - 1) * ranks + rank];
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  StageBytes(exec, call.x.data<uint8_t>(), buffer.Rows(rank, call.slot), rows * row_bytes);
  if (!call.topk_weights) return;
  const int64_t weight_bytes = call.topk_weights.size(1) * static_cast<int64_t>(sizeof(float));
  auto* weights = reinterpret_cast<uint8_t*>(buffer.TopkWeights(rank, call.slot));
  StageBytes(exec, call.topk_weights.data<uint8_t>(), weights, rows * weight_bytes);
}

}  // namespace

void Combine(const Exec& exec, const CombineCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  const uint64_t epoch = ++buffer.slots[call.slot].combine_epoch;
  Stage(exec, call);
  const CombineArguments arguments = {call.x.size(1), static_cast<int64_t>(call.x.dtype()),
                                      call.topk_weights ? call.topk_weights.size(1) : 0};
  if (!MeetForCombine(exec, buffer, call.slot, arguments, epoch, deadline)) return;
  const RowCopy copy(call.out.size(1) * BitsOf(call.out.dtype()) / 8, call.out.size(0));
  exec.ParallelFor(call.out.size(0), 8, [&](int64_t begin, int64_t end) {
    WithFormat(call.out.dtype(),
               [&](auto format) { SumTokens<decltype(format)>(call, copy, begin, end); });
    if (call.topk_weights) SumWeights(call, begin, end);
    copy.Finish();
  });
  buffer.SignalAll(call.slot, SignalKind::kCombineRead, epoch);
}

}  // namespace moe_ep::cpu
