// The words of what ranks find out together. Kernels only carry the numbers.
#pragma once

#include <cstdint>

#include "moe_ep/abi.h"

namespace moe_ep {

// Values: field of SharedArguments, what rank 0 passed, what the other passed, the other.
void DescribeMismatch(const int64_t* values, moe_ep_failure_text* text);
// Values: destination, rows, capacity of the buffer, room of the destination.
void DescribeCapacity(const int64_t* values, moe_ep_failure_text* text);
// Values: source, number of experts, id, token.
void DescribeInvalidId(const int64_t* values, moe_ep_failure_text* text);
// Values: columns, dtype and topk of rank 0; then (rank, columns), (dtype, topk) of the other in
// pairs of 32 bits.
void DescribeCombineMismatch(const int64_t* values, moe_ep_failure_text* text);
void DescribeUnsettled(const int64_t* values, moe_ep_failure_text* text);

inline int64_t PackPair(int64_t high, int64_t low) {
  return static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | static_cast<uint32_t>(low));
}

}  // namespace moe_ep
