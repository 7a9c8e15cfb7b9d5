// The rows of a batch of equally sized matrices that are in use: the first counts[b] of matrix b,
// or all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "moe_ep/command.h"
#include "moe_ep/tensor.h"

namespace moe_ep {

class MaskedRows {
 public:
  // `counts` is i32 [batch], or absent. Counts outside [0, rows] are taken as the nearest of these.
  MaskedRows(int64_t batch, int64_t rows, const Tensor& counts) {
    const auto* stored = counts.data<const int32_t>();
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t count = counts ? std::clamp<int64_t>(stored[b], 0, rows) : rows;
      ends_.push_back((b == 0 ? 0 : ends_.back()) + count);
    }
  }

  // Calls body(matrix, begin, end) on the stream's threads, for ranges that together are the rows
  // in use.
  template <typename Body>
  void ParallelFor(const Exec& exec, int64_t grain, const Body& body) const {
    exec.ParallelFor(ends_.empty() ? 0 : ends_.back(), grain, [&](int64_t begin, int64_t end) {
      auto matrix = std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin();
      while (begin < end) {
        const int64_t first = matrix == 0 ? 0 : ends_[matrix - 1];
        const int64_t until = std::min(end, ends_[matrix]);
        if (begin < until) body(matrix, begin - first, until - first);
        begin = std::max(begin, until);
        ++matrix;
      }
    });
  }

 private:
  std::vector<int64_t> ends_;
};

}  // namespace moe_ep
