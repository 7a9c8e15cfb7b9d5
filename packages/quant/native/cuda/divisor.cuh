// Quotients of numbers below 2^31 by one that the host knows, without a division.
#pragma once

#include <bit>
#include <cstdint>

namespace moe_ep::cuda {

class Divisor {
 public:
  // At least 1.
  explicit Divisor(uint32_t value)
      : value_(value),
        shift_(31 + std::bit_width(value - 1)),
        multiplier_(static_cast<uint32_t>(((uint64_t{1} << shift_) + value - 1) / value)) {}

  __device__ __forceinline__ uint32_t value() const { return value_; }
  // The multiplier is 2^shift / value and less than one more. That makes n / value less than
  // n / 2^shift more, which is at most 1 / value: the next whole number is not reached.
  __device__ __forceinline__ uint32_t QuotientOf(uint32_t n) const {
    return static_cast<uint32_t>(static_cast<uint64_t>(n) * multiplier_ >> shift_);
  }

 private:
  uint32_t value_;
  int shift_;
  uint32_t multiplier_;
};

}  // namespace moe_ep::cuda
