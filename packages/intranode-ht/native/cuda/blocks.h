// How many blocks move rows, one to a multiprocessor.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moe_ep::cuda {

enum class Moves {
  kRows,    // to or from ranks, this one among them
  kCopies,  // and copies inside the GPU, of rows that several experts of a rank need
};

// Where the caller wants none in particular: links are saturated by a sixteenth of a GPU's
// multiprocessors, and rows and copies that stay on the GPU want about as many again each. More
// make nothing much faster (docs/benchmarks.md), and others have use for them.
inline int64_t BlocksFor(Moves moves, int64_t wanted, int64_t useful, int multiprocessors) {
  const int64_t enough = std::max(1, multiprocessors * (moves == Moves::kRows ? 2 : 3) / 16);
  return std::min<int64_t>({wanted > 0 ? wanted : enough, useful, multiprocessors});
}

}  // namespace moe_ep::cuda
