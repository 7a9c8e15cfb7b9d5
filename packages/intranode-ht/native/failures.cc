#include "failures.h"

#include <cstring>
#include <string>
#include <tuple>

#include "moe_ep/dtype.h"
#include "protocol.h"

namespace moe_ep {
namespace {

void Put(moe_ep_failure_text* text, const char* code, const std::string& message) {
  std::strncpy(text->code, code, sizeof(text->code) - 1);
  std::strncpy(text->message, message.c_str(), sizeof(text->message) - 1);
}

std::string Dispatch(const std::string& words) {
  return std::string(kDispatchOperation) + ": " + words;
}

std::string ResultsOf(int64_t rank, int64_t columns, int64_t dtype, int64_t topk) {
  return "rank " + std::to_string(rank) + " passed rows of " + std::to_string(columns) +
         " elements of " + std::to_string(BitsOf(static_cast<DType>(dtype))) + " bits (dtype " +
         std::to_string(dtype) + ") with " + std::to_string(topk) + " weights";
}

}  // namespace

void DescribeMismatch(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_MISMATCH",
      Dispatch(std::string(kSharedArgumentNames[values[0]]) + ": rank 0 passed " +
               std::to_string(values[1]) + ", rank " + std::to_string(values[3]) + " passed " +
               std::to_string(values[2])));
}

void DescribeCapacity(const int64_t* values, moe_ep_failure_text* text) {
  const auto [destination, rows, capacity, room] =
      std::tuple{values[0], values[1], values[2], values[3]};
  Put(text, "ERR_MOE_EP_CAPACITY",
      Dispatch("rank " + std::to_string(destination) + " would receive " + std::to_string(rows) +
               " rows, " +
               (rows > capacity ? "the buffer holds " + std::to_string(capacity)
                                : "its out holds " + std::to_string(room))));
}

void DescribeInvalidId(const int64_t* values, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_ARGUMENT",
      Dispatch("rank " + std::to_string(values[0]) + ": topkIdx: expected -1 or an expert below " +
               std::to_string(values[1]) + ", received " + std::to_string(values[2]) +
               " for token " + std::to_string(values[3])));
}

void DescribeCombineMismatch(const int64_t* values, moe_ep_failure_text* text) {
  const auto high = [&](int i) { return values[i] >> 32; };
  const auto low = [&](int i) { return values[i] & 0xffffffff; };
  Put(text, "ERR_MOE_EP_MISMATCH",
      std::string(kCombineOperation) + ": " + ResultsOf(0, values[0], values[1], values[2]) + ", " +
          ResultsOf(high(3), low(3), high(4), low(4)));
}

void DescribeUnsettled(const int64_t*, moe_ep_failure_text* text) {
  Put(text, "ERR_MOE_EP_INTERNAL",
      Dispatch("rows were to be sent although the counts were refused"));
}

}  // namespace moe_ep
