// The weighted sum of bf16 rows, as both ends of combine define it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe_ep/dtype.h"
#include "moe_ep/isa.h"
#include "moe_ep/prefetch_row.h"

namespace moe_ep::cpu {

struct Term {
  const uint16_t* row;
  float weight;
};

// f32 products and additions in order, the first product starting the sum (+0 without rows),
// rounded once to bf16. `kWeighted` false: the rows themselves are added.
template <bool kWeighted>
MOE_EP_CLONES void SumRows(const Term* terms, int64_t count, int64_t columns, uint16_t* out) {
  constexpr int64_t kBlock = 512;
  float sum[kBlock];
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    const int64_t size = std::min(kBlock, columns - begin);
    const int64_t ahead = std::min(kBlock, columns - begin - size);
    for (int64_t term = 0; term < count; ++term)
      PrefetchRow(terms[term].row + begin + size, ahead * static_cast<int64_t>(sizeof(uint16_t)));
    if (count == 0) std::fill_n(sum, size, 0.0f);
    for (int64_t term = 0; term < count; ++term) {
      const uint16_t* row = terms[term].row + begin;
      const float weight = terms[term].weight;
      if (term == 0) {
        for (int64_t i = 0; i < size; ++i)
          sum[i] = kWeighted ? BF16ToFloat(row[i]) * weight : BF16ToFloat(row[i]);
      } else {
        for (int64_t i = 0; i < size; ++i)
          sum[i] = sum[i] + (kWeighted ? BF16ToFloat(row[i]) * weight : BF16ToFloat(row[i]));
      }
    }
    for (int64_t i = 0; i < size; ++i) out[begin + i] = FloatToBF16(sum[i]);
  }
}

}  // namespace moe_ep::cpu
