// How rows travel, and where things lie in one: its codes, then its scales.
#pragma once

#include <cstdint>

#include "moe_ep/host_device.h"

namespace moe_ep {

// The numbers are shared with src/row-format.ts.
enum class RowFormat : int64_t {
  kBF16 = 0,
  kFp8 = 1,            // e4m3, an f32 scale for 128 elements
  kFp8PowerOfTwo = 2,  // the same with scales that are powers of two
  kMxfp8 = 3,          // e4m3, an e8m0 scale for 32 elements
  kNvfp4 = 4,          // e2m1, two a byte, an e4m3 scale for 16 elements under one for the tensor
};

inline constexpr int64_t kGroupSize = 128;  // elements of fp8 that share a scale

// Whether scales are bytes, which rows keep together; others are words, which columns keep
// together.
MOE_EP_HOST_DEVICE constexpr bool HasByteScales(RowFormat format) {
  return format == RowFormat::kMxfp8 || format == RowFormat::kNvfp4;
}

// Whole vectors of 16 bytes: hidden sizes are refused otherwise.
MOE_EP_HOST_DEVICE constexpr int64_t CodeBytes(RowFormat format, int64_t hidden) {
  if (format == RowFormat::kBF16) return hidden * 2;
  return format == RowFormat::kNvfp4 ? hidden / 2 : hidden;
}

// Scales of a row of a format with byte scales.
MOE_EP_HOST_DEVICE constexpr int64_t NumByteScales(RowFormat format, int64_t hidden) {
  const int64_t group = format == RowFormat::kNvfp4 ? 16 : 32;
  return (hidden + group - 1) / group;
}
// Their bytes in a message: kernels write whole vectors.
MOE_EP_HOST_DEVICE constexpr int64_t ByteScaleRoom(RowFormat format, int64_t hidden) {
  return (NumByteScales(format, hidden) + 15) / 16 * 16;
}

// Where the scales of a row of fp8 begin.
MOE_EP_HOST_DEVICE constexpr int64_t ScalesOffset(int64_t hidden) { return (hidden + 3) / 4 * 4; }
MOE_EP_HOST_DEVICE constexpr int64_t NumGroups(int64_t hidden) {
  return (hidden + kGroupSize - 1) / kGroupSize;
}

// Bytes of a message of any format. Rows of MXFP8 (hidden a multiple of 16) and of NVFP4 (of 32)
// take no more than those of bf16: at most 16 bytes beside a half, and a sixteenth, of that.
constexpr int64_t MessageBytes(int64_t hidden) {
  const int64_t bf16 = CodeBytes(RowFormat::kBF16, hidden);
  const int64_t fp8 = ScalesOffset(hidden) + NumGroups(hidden) * 4;
  return ((bf16 > fp8 ? bf16 : fp8) + 15) / 16 * 16;
}
static_assert(CodeBytes(RowFormat::kMxfp8, 16) + ByteScaleRoom(RowFormat::kMxfp8, 16) <=
              MessageBytes(16));
static_assert(CodeBytes(RowFormat::kNvfp4, 32) + ByteScaleRoom(RowFormat::kNvfp4, 32) <=
              MessageBytes(32));

// Results as LogFMT-10: codes, then two bf16 a group of 128 elements. They fit where rows of bf16
// do.
MOE_EP_HOST_DEVICE constexpr int64_t LogCodeBytes(int64_t hidden) { return hidden / 8 * 10; }
MOE_EP_HOST_DEVICE constexpr int64_t LogRangesOffset(int64_t hidden) {
  return (LogCodeBytes(hidden) + 3) / 4 * 4;
}
static_assert(LogRangesOffset(8) + 4 * NumGroups(8) <= 2 * 8);

}  // namespace moe_ep
