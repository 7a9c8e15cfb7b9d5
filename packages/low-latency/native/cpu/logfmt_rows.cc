#include "cpu/logfmt_rows.h"

#include <algorithm>

#include "moe_ep/isa.h"
#include "moe_ep/quant/logfmt.h"
#include "row_format.h"

namespace moe_ep::cpu {

static_assert(LogCodeBytes(24) == LogFmt10::RowBytes(24) &&
              LogCodeBytes(1160) == LogFmt10::RowBytes(1160));

MOE_EP_CLONES void EncodeLogRow(const uint16_t* x, int64_t hidden, void* result) {
  auto* const row = static_cast<uint8_t*>(result);
  QuantizeLogFmt10Row(x, hidden, row, reinterpret_cast<uint16_t*>(row + LogRangesOffset(hidden)));
}

MOE_EP_CLONES void SumLogRows(const Term* terms, int64_t count, int64_t columns, uint16_t* out) {
  constexpr int64_t kGroup = LogFmt10::kGroup;
  float sum[kGroup];
  uint32_t numbers[kGroup];
  for (int64_t g = 0; g * kGroup < columns; ++g) {
    const int64_t size = std::min(kGroup, columns - g * kGroup);
    if (count == 0) std::fill_n(sum, size, 0.0f);
    for (int64_t term = 0; term < count; ++term) {
      const auto* const row = reinterpret_cast<const uint8_t*>(terms[term].row);
      const auto* const codes = row + g * LogFmt10::kGroupBytes;
      const auto* const range =
          reinterpret_cast<const uint16_t*>(row + LogRangesOffset(columns)) + 2 * g;
      // Whole groups have a count that the compiler knows.
      if (size == kGroup) {
        detail::DecodeLogGroup<F32Element>(codes, range, kGroup, numbers);
      } else {
        detail::DecodeLogGroup<F32Element>(codes, range, size, numbers);
      }
      const float weight = terms[term].weight;
      for (int64_t i = 0; i < size; ++i) {
        const float product = FloatOfBits(numbers[i]) * weight;
        sum[i] = term == 0 ? product : sum[i] + product;
      }
    }
    for (int64_t i = 0; i < size; ++i) out[g * kGroup + i] = FloatToBF16(sum[i]);
  }
}

}  // namespace moe_ep::cpu
