// What the operations are asked to do, on any device. Definitions: README.md and src/reference.
#pragma once

#include <cstdint>
#include <optional>

#include "moe_ep/deepgemm_permute/local_experts.h"
#include "moe_ep/dtype.h"
#include "moe_ep/host_device.h"

namespace moe_ep {

struct PlacementRequest {
  LocalExperts experts;
  int64_t num_tokens;
  int64_t topk;
  int64_t alignment;
  int64_t rows_per_expert;  // masked layout: every expert has this many; 0: as many as it needs
  const int32_t*
      reserved;      // rows to keep for each expert, at least its slots; null: as many as its slots
  int64_t capacity;  // rows of the output
  bool foreign_last;  // slots without a local expert are numbered too, behind all rows

  // Rows that an expert with so many slots takes, padding included.
  MOE_EP_HOST_DEVICE int64_t RowsOf(int64_t expert, int64_t total) const {
    if (rows_per_expert > 0) return rows_per_expert;
    const int64_t rows = reserved == nullptr ? total : reserved[expert];
    const int64_t most = rows + alignment - 1;
    // Divisions of 64 bits are long on a GPU.
    if (most < UINT32_MAX)
      return static_cast<int64_t>(static_cast<uint32_t>(most) / static_cast<uint32_t>(alignment)) *
             alignment;
    return most / alignment * alignment;
  }
};

// Which row of the layout each slot gets.
struct Placement {
  int32_t* row_of_slot;        // [num_tokens, topk], -1 for slots without a local expert
  int64_t* expert_start;       // [num_local + 1]: first row of each expert, then the rows needed
  int32_t* expert_end;         // [num_local]: behind the last row; may be null
  int32_t* expert_num_tokens;  // [num_local]
};

struct RowMove {
  const uint8_t* from;
  int64_t from_stride;  // bytes
  uint8_t* to;          // rows lie without gaps
  int64_t row_bytes;
};

// Scales that travel with rows, whatever way they lie. Strides are in bytes. A null source means
// that there are none.
struct ScaleMove {
  const uint8_t* from;
  int64_t from_row_stride;
  int64_t from_column_stride;
  int64_t columns;        // of the source
  int64_t element_bytes;  // of the source, 1 or 4
  bool pack;              // four one-byte elements of the source become one word, the first lowest
  uint8_t* to;
  int64_t rows_per_batch;  // rows of the output come in batches: experts, or all rows in one
  int64_t to_batch_stride;
  int64_t to_row_stride;
  int64_t to_column_stride;

  // Of a row's scales in the output, in bytes.
  MOE_EP_HOST_DEVICE int64_t OffsetOf(int64_t row) const {
    if (row < rows_per_batch) return row * to_row_stride;
    return row / rows_per_batch * to_batch_stride + row % rows_per_batch * to_row_stride;
  }
  MOE_EP_HOST_DEVICE int64_t to_columns() const { return pack ? (columns + 3) / 4 : columns; }
  MOE_EP_HOST_DEVICE int64_t to_element_bytes() const { return pack ? 4 : element_bytes; }
};

// Ids of rows that no slot went to.
struct PaddingIds {
  std::optional<int32_t> inside;  // behind an expert's rows; absent: the expert's own id
  std::optional<int32_t> behind;  // behind the last expert; absent: stays as it was
};

struct PermuteRequest {
  PlacementRequest placement;
  RowMove rows;
  ScaleMove scales;
  PaddingIds padding_ids;
  bool zero_rows;    // rows that no slot went to become zero
  bool zero_scales;  // their scales, likewise
};

struct UnpermuteRequest {
  // Which slots take part: those with a local expert, where ids are given; else those whose row is
  // below `num_valid_rows`; where that is null, all.
  std::optional<LocalExperts> experts;
  const int64_t* num_valid_rows;
  const int32_t* row_of_slot;  // [num_tokens, topk]
  const float* weights;        // [num_tokens, topk]
  int64_t num_tokens;
  int64_t topk;
  int64_t hidden;
  const void* rows;
  DType rows_dtype;
  int64_t row_stride;  // elements
  int64_t num_rows;
  void* out;  // [num_tokens, hidden]
  DType out_dtype;
};

}  // namespace moe_ep
