#include "failures.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include "protocol.h"

namespace moe_ep {
namespace {

// All of core's. A code that is not here travels as the first.
constexpr const char* kRefusalCodes[] = {
    "ERR_MOE_EP_INTERNAL",      "ERR_MOE_EP_ARGUMENT",    "ERR_MOE_EP_UNSUPPORTED",
    "ERR_MOE_EP_NATIVE_LOAD",   "ERR_MOE_EP_NO_DEVICE",   "ERR_MOE_EP_DUPLICATE_CORE",
    "ERR_MOE_EP_OUT_OF_MEMORY", "ERR_MOE_EP_RELEASED",    "ERR_MOE_EP_CAPTURE",
    "ERR_MOE_EP_TIMEOUT",       "ERR_MOE_EP_ABORTED",     "ERR_MOE_EP_AUTH",
    "ERR_MOE_EP_PROTOCOL",      "ERR_MOE_EP_CONNECT",     "ERR_MOE_EP_PEER_LOST",
    "ERR_MOE_EP_MISMATCH",      "ERR_MOE_EP_CAPACITY",    "ERR_MOE_EP_NO_FREE_SLOT",
    "ERR_MOE_EP_CONFIG",        "ERR_MOE_EP_FILE_FORMAT", "ERR_MOE_EP_CHECK_FAILED",
    "ERR_MOE_EP_LAUNCH",
};
static_assert(kRefusal + std::size(kRefusalCodes) < kNotes);

void Put(moe_ep_failure_text* text, const char* code, const std::string& message) {
  std::strncpy(text->code, code, sizeof(text->code) - 1);
  std::strncpy(text->message, message.c_str(), sizeof(text->message) - 1);
}

std::string WrongId(const char* operation, const int64_t* values) {
  return std::string(operation) + ": rank " + std::to_string(values[0]) + ", token " +
         std::to_string(values[1]) + ": expert " + std::to_string(values[2]) + " of " +
         std::to_string(values[3]);
}

void PutRefusal(const char* operation, const int64_t* values, moe_ep_failure_text* text) {
  const char* const code = kRefusalCodes[values[1] - 1];
  Put(text, code,
      std::string(operation) + ": refused by rank " + std::to_string(values[0]) + ": " + code);
}

}  // namespace

void DescribeMismatch(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_MISMATCH",
      std::string(kDispatchOperation) + ": " + kSharedArgumentNames[values[0]] + " is " +
          std::to_string(values[1]) + " on rank " + std::to_string(values[4]) + " and " +
          std::to_string(values[2]) + " on rank " + std::to_string(values[3]));
}

void DescribeMaskedOut(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_MISMATCH",
      std::string(kDispatchOperation) + ": rank " + std::to_string(values[0]) +
          " is masked by other ranks");
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

void DescribeDispatchRefusal(const int64_t* values, moe_ep_failure_text* text) {
  PutRefusal(kDispatchOperation, values, text);
}

void DescribeCombineRefusal(const int64_t* values, moe_ep_failure_text* text) {
  PutRefusal(kCombineOperation, values, text);
}

int64_t RefusalNumber(const std::string& code) {
  const auto* const found = std::find(std::begin(kRefusalCodes), std::end(kRefusalCodes), code);
  return 1 + (found == std::end(kRefusalCodes) ? 0 : found - std::begin(kRefusalCodes));
}

void DescribeNotReceived(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_ARGUMENT",
      std::string(kCombineOperation) + ", slot " + std::to_string(values[0]) +
          ": its dispatch failed");
}

}  // namespace moe_ep
