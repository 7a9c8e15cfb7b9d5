// Copies of payload rows into slots and results.
#pragma once

#include <cstdint>
#include <cstring>

#include "moe_ep/stream_row.h"

namespace moe_ep::cpu {

// Chooses once a call between cached copies and streaming ones: where all rows together leave the
// caches anyway, going past them spares reading the destination's lines.
class RowCopy {
 public:
  RowCopy(int64_t row_bytes, int64_t rows)
      : row_bytes_(row_bytes), streaming_(WorthStreaming(row_bytes, rows)) {}

  void operator()(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row) const {
    uint8_t* target = to + to_row * row_bytes_;
    const uint8_t* source = from + from_row * row_bytes_;
    if (streaming_) {
      StreamRow(target, source, row_bytes_);
    } else {
      std::memcpy(target, source, static_cast<size_t>(row_bytes_));
    }
  }

  // The same for a piece of a row that was just computed.
  void Piece(void* to, const void* from, int64_t bytes) const {
    if (streaming_) {
      StreamRow(static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes);
    } else {
      std::memcpy(to, from, static_cast<size_t>(bytes));
    }
  }

  // Every thread that copied calls it before rows are signalled.
  void Finish() const {
    if (streaming_) FinishStreaming();
  }

 private:
  int64_t row_bytes_;
  bool streaming_;
};

}  // namespace moe_ep::cpu
