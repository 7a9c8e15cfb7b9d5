// Scales that travel with rows into the layout, whatever way they lie there.
#pragma once

#include <cstdint>

#include "moe_ep/command.h"

namespace moe_ep::cpu {

// Strides are in bytes. A null source means that there are none.
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
};

// Row r of the output becomes the row of token_of_row[r]; where that is -1 it becomes zero or,
// without `zero_padding`, stays what it was.
void MoveScales(const Exec& exec, const ScaleMove& move, const int32_t* token_of_row,
                int64_t num_rows, bool zero_padding);

}  // namespace moe_ep::cpu
