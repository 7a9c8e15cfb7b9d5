// What kernels of this package may find wrong, as host functions that put it into words.
#pragma once

#include <cstdio>
#include <string>

#include "messages.h"
#include "moe_ep/abi.h"

namespace moe_ep::cuda {

inline void Say(moe_ep_failure_text* text, const char* code, const std::string& message) {
  std::snprintf(text->code, sizeof(text->code), "%s", code);
  std::snprintf(text->message, sizeof(text->message), "%s", message.c_str());
}

inline void DescribeTopkIdx(const int64_t* v, moe_ep_failure_text* text) {
  Say(text, "ERR_MOE_EP_ARGUMENT", messages::TopkIdx(v[0], v[1], v[2], v[3]));
}
inline void DescribeExpertMap(const int64_t* v, moe_ep_failure_text* text) {
  Say(text, "ERR_MOE_EP_ARGUMENT", messages::ExpertMap(v[0], v[1], v[2], v[3], v[4]));
}
inline void DescribeReserved(const int64_t* v, moe_ep_failure_text* text) {
  Say(text, "ERR_MOE_EP_ARGUMENT", messages::Reserved(v[0], v[1], v[2]));
}
inline void DescribeCapacity(const int64_t* v, moe_ep_failure_text* text) {
  Say(text, "ERR_MOE_EP_CAPACITY", messages::Capacity(v[0], v[1]));
}
inline void DescribeMaskedCapacity(const int64_t* v, moe_ep_failure_text* text) {
  Say(text, "ERR_MOE_EP_CAPACITY", messages::MaskedCapacity(v[0], v[1], v[2]));
}
inline void DescribeInversePermutation(const int64_t* v, moe_ep_failure_text* text) {
  Say(text, "ERR_MOE_EP_ARGUMENT", messages::InversePermutation(v[0], v[1], v[2], v[3]));
}

// Kernels carry the addresses: device code cannot take those of host functions.
struct Describers {
  moe_ep_describe_failure topk_idx = DescribeTopkIdx;
  moe_ep_describe_failure expert_map = DescribeExpertMap;
  moe_ep_describe_failure reserved = DescribeReserved;
  moe_ep_describe_failure capacity = DescribeCapacity;
  moe_ep_describe_failure masked_capacity = DescribeMaskedCapacity;
  moe_ep_describe_failure inverse_permutation = DescribeInversePermutation;
};

}  // namespace moe_ep::cuda
