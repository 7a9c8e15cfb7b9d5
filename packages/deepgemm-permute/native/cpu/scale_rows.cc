#include "cpu/scale_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace moe_ep::cpu {
namespace {

// Rows at a time: whole cache lines of a column, while their source rows stay cached.
constexpr int64_t kBlock = 64;

// The rows of a block that have a source.
struct Rows {
  const uint8_t* from[kBlock];
  uint8_t* to[kBlock];
  int64_t size = 0;
};

void ZeroRow(const ScaleMove& move, uint8_t* to) {
  for (int64_t column = 0; column < move.to_columns(); ++column)
    std::memset(to + column * move.to_column_stride, 0,
                static_cast<size_t>(move.to_element_bytes()));
}

// Strides are arguments, so that a packed row can be read word by word. Four columns together: each
// row's addresses are loaded once for them.
template <typename Element>
void MoveElements(const Rows& rows, int64_t columns, int64_t from_stride, int64_t to_stride) {
  constexpr int64_t kTogether = 4;
  int64_t column = 0;
  for (; column + kTogether <= columns; column += kTogether) {
    for (int64_t i = 0; i < rows.size; ++i) {
      const uint8_t* const from = rows.from[i] + column * from_stride;
      uint8_t* const to = rows.to[i] + column * to_stride;
      Element elements[kTogether];
      for (int64_t c = 0; c < kTogether; ++c)
        std::memcpy(&elements[c], from + c * from_stride, sizeof(Element));
      for (int64_t c = 0; c < kTogether; ++c)
        std::memcpy(to + c * to_stride, &elements[c], sizeof(Element));
    }
  }
  for (; column < columns; ++column)
    for (int64_t i = 0; i < rows.size; ++i)
      std::memcpy(rows.to[i] + column * to_stride, rows.from[i] + column * from_stride,
                  sizeof(Element));
}

// Four exponents a word; groups that are not there are 0.
void PackWords(const ScaleMove& move, const Rows& rows, int64_t first_word) {
  for (int64_t word = first_word; word * 4 < move.columns; ++word) {
    const int64_t present = std::min<int64_t>(4, move.columns - word * 4);
    for (int64_t i = 0; i < rows.size; ++i) {
      uint32_t packed = 0;
      for (int64_t j = 0; j < present; ++j)
        packed |= uint32_t{rows.from[i][(word * 4 + j) * move.from_column_stride]} << (8 * j);
      std::memcpy(rows.to[i] + word * move.to_column_stride, &packed, sizeof(packed));
    }
  }
}

void MoveRows(const ScaleMove& move, const Rows& rows) {
  const bool together = move.from_column_stride == move.element_bytes;
  if (move.pack) {
    // Bytes that lie together are words already.
    const bool words = together && std::endian::native == std::endian::little;
    const int64_t whole_words = words ? move.columns / 4 : 0;
    MoveElements<uint32_t>(rows, whole_words, 4, move.to_column_stride);
    PackWords(move, rows, whole_words);
  } else if (together && move.to_column_stride == move.element_bytes) {
    for (int64_t i = 0; i < rows.size; ++i)
      std::memcpy(rows.to[i], rows.from[i], static_cast<size_t>(move.columns * move.element_bytes));
  } else if (move.element_bytes == 1) {
    MoveElements<uint8_t>(rows, move.columns, move.from_column_stride, move.to_column_stride);
  } else {
    MoveElements<uint32_t>(rows, move.columns, move.from_column_stride, move.to_column_stride);
  }
}

}  // namespace

void MoveScales(const Exec& exec, const ScaleMove& move, const int32_t* token_of_row,
                int64_t num_rows, bool zero_padding) {
  if (num_rows == 0 || move.columns == 0) return;
  const int64_t blocks_per_batch = (move.rows_per_batch + kBlock - 1) / kBlock;
  const int64_t num_batches = num_rows / move.rows_per_batch;
  exec.ParallelFor(num_batches * blocks_per_batch, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / blocks_per_batch;
      const int64_t first = i % blocks_per_batch * kBlock;
      const int64_t last = std::min(first + kBlock, move.rows_per_batch);
      Rows rows;
      for (int64_t row = first; row < last; ++row) {
        uint8_t* const to = move.to + batch * move.to_batch_stride + row * move.to_row_stride;
        const int64_t token = token_of_row[batch * move.rows_per_batch + row];
        if (token < 0) {
          if (zero_padding) ZeroRow(move, to);
          continue;
        }
        rows.from[rows.size] = move.from + token * move.from_row_stride;
        rows.to[rows.size++] = to;
      }
      MoveRows(move, rows);
    }
  });
}

}  // namespace moe_ep::cpu
