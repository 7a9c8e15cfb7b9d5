#include "cpu/cast_row.h"

#include <cstring>

#include "moe_ep/isa.h"
#include "moe_ep/quant/elements.h"
#include "moe_ep/quant/group_quant.h"
#include "moe_ep/quant/small_groups.h"

namespace moe_ep::cpu {
namespace {

MOE_EP_CLONES void CastToFp8(const uint16_t* x, int64_t hidden, bool power_of_two, uint8_t* row) {
  const ScaleRule rule = {GroupNumerics::kDeepEp, power_of_two};
  const ScaleRow scales = {row + ScalesOffset(hidden), sizeof(float), /*packed=*/false};
  QuantizeRowPerGroup<BF16Element, Encoding::kMultiply>(x, hidden, kGroupSize, rule, row, scales);
}

MOE_EP_CLONES void CastToMxfp8(const uint16_t* x, int64_t hidden, uint8_t* row) {
  uint8_t* const scales = row + CodeBytes(RowFormat::kMxfp8, hidden);
  QuantizeSmallGroups<BF16Element, E4M3Codes>(
      x, hidden, MxScales<E4M3Codes>{MxScaleRule::kOcp}, row,
      [&](int64_t group, uint8_t code) MOE_EP_LANE_LAMBDA { scales[group] = code; });
}

MOE_EP_CLONES void CastToNvfp4(const uint16_t* x, int64_t hidden, float global_scale,
                               uint8_t* row) {
  uint8_t* const scales = row + CodeBytes(RowFormat::kNvfp4, hidden);
  QuantizeSmallGroups<BF16Element, E2M1Codes>(x, hidden, Nvfp4Scales::Of(global_scale), row,
                                              [&](int64_t group, uint8_t code)
                                                  MOE_EP_LANE_LAMBDA { scales[group] = code; });
}

}  // namespace

void CastRow(RowFormat format, float global_scale, const uint16_t* x, int64_t hidden,
             uint8_t* row) {
  if (format == RowFormat::kMxfp8) return CastToMxfp8(x, hidden, row);
  if (format == RowFormat::kNvfp4) return CastToNvfp4(x, hidden, global_scale, row);
  CastToFp8(x, hidden, format == RowFormat::kFp8PowerOfTwo, row);
}

int64_t RowBytes(RowFormat format, int64_t hidden) {
  if (format == RowFormat::kBF16) return CodeBytes(format, hidden);
  if (HasByteScales(format)) return CodeBytes(format, hidden) + NumByteScales(format, hidden);
  return ScalesOffset(hidden) + NumGroups(hidden) * 4;
}

}  // namespace moe_ep::cpu
