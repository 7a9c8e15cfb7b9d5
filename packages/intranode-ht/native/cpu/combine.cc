#include "cpu/combine.h"

#include <algorithm>
#include <vector>

#include "cpu/meet_for_combine.h"
#include "cpu/row_formats.h"
#include "moe_ep/isa.h"

namespace moe_ep::cpu {
namespace {

// Sum of `count` rows in order, the first one starting it (+0 without rows), then the biases;
// rounded once.
template <typename Format>
MOE_EP_CLONES void SumRows(const typename Format::Storage* const* rows, int count,
                           const typename Format::Storage* const* biases, int num_biases,
                           int64_t columns, typename Format::Storage* out) {
  float sum[kColumnBlock];
  for (int64_t begin = 0; begin < columns; begin += kColumnBlock) {
    const int64_t size = std::min(kColumnBlock, columns - begin);
    for (int64_t i = 0; i < size; ++i)
      sum[i] = count == 0 ? 0.0f : Format::Load(rows[0][begin + i]);
    for (int source = 1; source < count; ++source) {
      const typename Format::Storage* row = rows[source] + begin;
      for (int64_t i = 0; i < size; ++i) sum[i] += Format::Load(row[i]);
    }
    for (int bias = 0; bias < num_biases; ++bias) {
      const typename Format::Storage* row = biases[bias] + begin;
      for (int64_t i = 0; i < size; ++i) sum[i] += Format::Load(row[i]);
    }
    for (int64_t i = 0; i < size; ++i) out[begin + i] = Format::Store(sum[i]);
  }
}

template <typename Format>
void SumTokens(const CombineCall& call, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int64_t columns = call.out.size(1);
  std::vector<const Storage*> rows(static_cast<size_t>(ranks));
  for (int64_t token = begin; token < end; ++token) {
    const auto* head = call.send_head.data<int32_t>() + token * ranks;
    int count = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      if (head[rank] < 0) continue;
      rows[count++] = reinterpret_cast<const Storage*>(buffer.Rows(rank, call.slot)) +
                      int64_t{head[rank]} * columns;
    }
    const Storage* biases[2];
    int num_biases = 0;
    for (const Tensor& bias : call.bias) {
      if (bias) biases[num_biases++] = bias.data<Storage>() + token * columns;
    }
    SumRows<Format>(rows.data(), count, biases, num_biases, columns,
                    call.out.data<Storage>() + token * columns);
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
  if (!MeetForCombine(exec, buffer, call.slot, arguments, call.num_tokens_per_rank, epoch,
                      deadline))
    return;
  exec.ParallelFor(call.out.size(0), 8, [&](int64_t begin, int64_t end) {
    WithFormat(call.out.dtype(),
               [&](auto format) { SumTokens<decltype(format)>(call, begin, end); });
    if (call.topk_weights) SumWeights(call, begin, end);
  });
  buffer.SignalAll(call.slot, SignalKind::kCombineRead, epoch);
}

}  // namespace moe_ep::cpu
