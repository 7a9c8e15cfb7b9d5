#include "cpu/unpermute.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "cpu/slot_counts.h"
#include "messages.h"
#include "moe_ep/deepgemm_permute/reduce_rows.h"
#include "moe_ep/isa.h"

namespace moe_ep::cpu {
namespace {

// Columns that are summed at a time, and how many columns ahead rows are called for: they are short
// and far apart, so that the machine alone finds out too late what comes next. Into the
// second-level cache, because the first one cannot wait for so many lines at once.
constexpr int64_t kBlock = 128;
constexpr int64_t kAhead = 1024;
constexpr int64_t kLine = 64;

template <DType dtype>
inline __attribute__((always_inline)) void Accumulate(float* acc, const void* const* rows,
                                                      const float* weights, int64_t count,
                                                      int64_t column, int64_t columns) {
  using Storage = typename RowElement<dtype>::Storage;
  constexpr int kTogether = 8;  // fewer passes over the sums
  const Storage* at[kTogether];
  for (int64_t r = 0; r < count;) {
    const int together = count - r >= 8 ? 8 : count - r >= 4 ? 4 : 1;
    for (int i = 0; i < together; ++i) at[i] = static_cast<const Storage*>(rows[r + i]) + column;
    if (together == 8) {
      AccumulateRows<dtype, 8>(acc, at, weights + r, columns);
    } else if (together == 4) {
      AccumulateRows<dtype, 4>(acc, at, weights + r, columns);
    } else {
      AccumulateRows<dtype, 1>(acc, at, weights + r, columns);
    }
    r += together;
  }
}

// One function an element type, so that each is compiled for every instruction set.
using AccumulateFunction = void (*)(float*, const void* const*, const float*, int64_t, int64_t,
                                    int64_t);
using StoreFunction = void (*)(const float*, void*, int64_t, int64_t);

#define MOE_EP_ROW_FUNCTIONS(name, dtype)                                                        \
  MOE_EP_CLONES void Accumulate##name(float* acc, const void* const* rows, const float* weights, \
                                      int64_t count, int64_t column, int64_t columns) {          \
    Accumulate<dtype>(acc, rows, weights, count, column, columns);                               \
  }                                                                                              \
  MOE_EP_CLONES void Store##name(const float* acc, void* out, int64_t column, int64_t columns) { \
    StoreRow<dtype>(acc, static_cast<RowElement<dtype>::Storage*>(out) + column, columns);       \
  }
MOE_EP_ROW_FUNCTIONS(F32, DType::kF32)
MOE_EP_ROW_FUNCTIONS(BF16, DType::kBF16)
MOE_EP_ROW_FUNCTIONS(F16, DType::kF16)
#undef MOE_EP_ROW_FUNCTIONS

AccumulateFunction AccumulateOf(DType dtype) {
  return dtype == DType::kF32    ? AccumulateF32
         : dtype == DType::kBF16 ? AccumulateBF16
                                 : AccumulateF16;
}
StoreFunction StoreOf(DType dtype) {
  return dtype == DType::kF32 ? StoreF32 : dtype == DType::kBF16 ? StoreBF16 : StoreF16;
}

constexpr int64_t kNoRow = -1;
constexpr int64_t kBadRow = -2;

// The row that the slot adds, kNoRow, or kBadRow when its id or row is out of range.
int64_t RowOf(const UnpermuteRequest& request, int64_t slot) {
  if (request.experts.has_value()) {
    const int64_t expert = (*request.experts)[slot];
    if (expert == kNoExpert) return kNoRow;
    if (expert == kInvalidExpert) return kBadRow;
  }
  const int64_t row = request.row_of_slot[slot];
  if (request.num_valid_rows != nullptr && row >= *request.num_valid_rows) return kNoRow;
  return row >= 0 && row < request.num_rows ? row : kBadRow;
}

// The first slot that cannot be read; -1 when all can. Looked for before anything is written.
int64_t FirstBadSlot(const Exec& exec, const UnpermuteRequest& request) {
  const int64_t num_slots = request.num_tokens * request.topk;
  std::atomic<int64_t> first(num_slots);
  exec.ParallelFor(num_slots, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      if (RowOf(request, slot) != kBadRow) continue;
      int64_t known = first.load();
      while (slot < known && !first.compare_exchange_weak(known, slot)) {
      }
      return;
    }
  });
  return first.load() == num_slots ? -1 : first.load();
}

void FailForBadSlot(const Exec& exec, const UnpermuteRequest& request, int64_t slot) {
  if (request.experts.has_value() && (*request.experts)[slot] == kInvalidExpert)
    return FailForSlot(exec, *request.experts, slot, request.topk);
  exec.Fail("ERR_MOE_EP_ARGUMENT",
            messages::InversePermutation(request.num_rows, request.row_of_slot[slot],
                                         slot / request.topk, slot % request.topk));
}

// The rows and weights of one token's slots, in slot order.
struct Terms {
  std::vector<const void*> rows;
  std::vector<float> weights;

  void Collect(const UnpermuteRequest& request, int64_t token) {
    rows.clear();
    weights.clear();
    const int64_t row_bytes = request.row_stride * BitsOf(request.rows_dtype) / 8;
    for (int64_t slot = token * request.topk; slot < (token + 1) * request.topk; ++slot) {
      const int64_t row = RowOf(request, slot);
      if (row < 0) continue;
      rows.push_back(static_cast<const uint8_t*>(request.rows) + row * row_bytes);
      weights.push_back(request.weights[slot]);
    }
  }
};

// Starts to bring the columns of a block into the cache.
void Prefetch(const Terms& terms, const UnpermuteRequest& request, int64_t column) {
  const int64_t element_bytes = BitsOf(request.rows_dtype) / 8;
  const int64_t begin = column * element_bytes;
  const int64_t end = std::min(column + kBlock, request.hidden) * element_bytes;
  for (const void* row : terms.rows)
    for (int64_t offset = begin; offset < end; offset += kLine)
      __builtin_prefetch(static_cast<const uint8_t*>(row) + offset, 0, 2);
}

}  // namespace

void UnpermuteAndReduce(const Exec& exec, const UnpermuteRequest& request) {
  const int64_t bad = FirstBadSlot(exec, request);
  if (bad >= 0) return FailForBadSlot(exec, request, bad);
  const AccumulateFunction accumulate = AccumulateOf(request.rows_dtype);
  const StoreFunction store = StoreOf(request.out_dtype);
  const int64_t out_row_bytes = request.hidden * BitsOf(request.out_dtype) / 8;
  const int64_t grain = std::max<int64_t>(
      1, (int64_t{32} << 10) / std::max<int64_t>(1, request.hidden * request.topk));
  exec.ParallelFor(request.num_tokens, grain, [&](int64_t begin, int64_t end) {
    alignas(64) float acc[kBlock];
    Terms terms;
    Terms next;
    next.Collect(request, begin);
    for (int64_t token = begin; token < end; ++token) {
      std::swap(terms, next);
      if (token + 1 < end) next.Collect(request, token + 1);
      uint8_t* const out = static_cast<uint8_t*>(request.out) + token * out_row_bytes;
      for (int64_t column = 0; column < request.hidden; column += kBlock) {
        const int64_t columns = std::min(kBlock, request.hidden - column);
        const int64_t ahead = column + kAhead;
        if (ahead < request.hidden) {
          Prefetch(terms, request, ahead);
        } else if (token + 1 < end) {
          Prefetch(next, request, ahead - request.hidden);
        }
        std::fill_n(acc, columns, 0.0f);
        accumulate(acc, terms.rows.data(), terms.weights.data(),
                   static_cast<int64_t>(terms.rows.size()), column, columns);
        store(acc, out, column, columns);
      }
    }
  });
}

}  // namespace moe_ep::cpu
