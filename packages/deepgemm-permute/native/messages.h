// The words of failures that are found while an operation runs: the same on every device.
#pragma once

#include <cstdint>
#include <string>

#include "moe_ep/deepgemm_permute/local_experts.h"

namespace moe_ep::messages {

inline std::string Below(int64_t limit) {
  return limit == kAnyNumberOfExperts ? "" : " below " + std::to_string(limit);
}

inline std::string Place(int64_t token, int64_t slot) {
  return " for token " + std::to_string(token) + ", slot " + std::to_string(slot);
}

inline std::string TopkIdx(int64_t id, int64_t limit, int64_t token, int64_t slot) {
  return "topkIdx: expected -1 or an expert" + Below(limit) + ", received " + std::to_string(id) +
         Place(token, slot);
}

inline std::string ExpertMap(int64_t entry, int64_t id, int64_t limit, int64_t token,
                             int64_t slot) {
  return "expertMap: expected -1 or a local expert" + Below(limit) + ", received " +
         std::to_string(entry) + " for expert " + std::to_string(id) + Place(token, slot);
}

inline std::string Reserved(int64_t total, int64_t expert, int64_t reserved) {
  return "expertNumTokens: expected at least " + std::to_string(total) + " for local expert " +
         std::to_string(expert) + ", received " + std::to_string(reserved);
}

inline std::string Capacity(int64_t capacity, int64_t needed) {
  return "permute: the output has " + std::to_string(capacity) + " rows, but " +
         std::to_string(needed) + " are needed";
}

inline std::string MaskedCapacity(int64_t rows, int64_t needed, int64_t expert) {
  return "permuteMasked: every expert has " + std::to_string(rows) + " rows, but " +
         std::to_string(needed) + " are needed for local expert " + std::to_string(expert);
}

inline std::string InversePermutation(int64_t num_rows, int64_t row, int64_t token, int64_t slot) {
  return "inversePermutation: expected a row below " + std::to_string(num_rows) + ", received " +
         std::to_string(row) + Place(token, slot);
}

}  // namespace moe_ep::messages
