// What the phases of dispatch share.
#pragma once

#include "cuda/copy_rows.cuh"
#include "cuda/device_buffer.cuh"
#include "cuda/scale_rows.cuh"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {

struct DispatchArguments {
  DeviceBuffer buffer;
  SharedArguments shared;
  ExpertPlacement placement;
  Patience patience;
  moe_ep_failure_record* snapshot;
  unsigned int* arrived;  // [2]: a counter for each phase

  int64_t refusal;  // of the call
  int64_t tokens;
  const uint16_t* x;
  TopkIds ids;
  const float* weights;       // or null
  const float* global_scale;  // of NVFP4, else null

  int64_t rows;  // of an expert, or of a source
  RowPieces pieces;
  uint8_t* recv_x;
  ScaleRows scale_rows;
  uint32_t* scales;       // column-major, words of 4 bytes; null for bf16 and byte scales
  int64_t scale_columns;  // numbers, or packed words
  bool packed;
  int32_t* count;
  int32_t* src_info;
  int64_t* layout_range;
  int32_t* received_rows;
  int32_t* received_messages;
  int32_t* received_first;
  int32_t* topk_idx;    // rank-major
  float* topk_weights;  // or null
  int32_t* recv_stats;  // or null
  int64_t* wait_stats;  // or null
  moe_ep_describe_failure describe_mismatch;
  moe_ep_describe_failure describe_invalid_id;
  moe_ep_describe_failure describe_refusal;
  moe_ep_describe_failure describe_masked_out;

  __device__ int topk() const { return static_cast<int>(shared.topk); }
  __device__ int stride() const { return static_cast<int>(PaddedTopk(shared.topk)); }
  __device__ bool per_selection() const { return buffer.layout.messages_per_token > 1; }
  __device__ RowFormat format() const { return static_cast<RowFormat>(shared.format); }
  __device__ bool bf16() const { return format() == RowFormat::kBF16; }
};

}  // namespace moe_ep::cuda
