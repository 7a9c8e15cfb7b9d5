#include "failures.h"

#include <cstring>
#include <string>

#include "protocol.h"

namespace moe_ep {
namespace {

void Put(moe_ep_failure_text* text, const char* code, const std::string& message) {
  std::strncpy(text->code, code, sizeof(text->code) - 1);
  std::strncpy(text->message, message.c_str(), sizeof(text->message) - 1);
}

std::string WrongId(const char* operation, const int64_t* values) {
  return std::string(operation) + ": rank " + std::to_string(values[0]) + ", token " +
         std::to_string(values[1]) + ": expert " + std::to_string(values[2]) + " of " +
         std::to_string(values[3]);
}

}  // namespace

void DescribeMismatch(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_MISMATCH",
      std::string(kDispatchOperation) + ": " + kSharedArgumentNames[values[0]] + " is " +
          std::to_string(values[1]) + " on rank " + std::to_string(values[4]) + " and " +
          std::to_string(values[2]) + " on rank " + std::to_string(values[3]));
}

void DescribeInvalidId(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_ARGUMENT", WrongId(kDispatchOperation, values));
}

void DescribeCombineId(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_ARGUMENT", WrongId(kCombineOperation, values));
}

void DescribeEncodings(const int64_t* values, moe_ep_failure_text* text) {
  const auto word = [](int64_t given) { return std::string(given != 0 ? "true" : "false"); };
  Put(text, "ERR_MOE_EP_MISMATCH",
      std::string(kCombineOperation) + ": useLogfmt is " + word(values[0]) + " on rank " +
          std::to_string(values[3]) + " and " + word(values[1]) + " on rank " +
          std::to_string(values[2]));
}

void DescribeNotReceived(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_ARGUMENT",
      std::string(kCombineOperation) + ", slot " + std::to_string(values[0]) +
          ": its dispatch failed");
}

}  // namespace moe_ep
