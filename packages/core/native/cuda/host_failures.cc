#include "cuda/host_failures.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <utility>

#include "cuda/cuda_recording.h"

namespace moe_ep::cuda {
namespace {

// Records may be copied on the device any number of times, so nobody knows when a text is needed no
// more: the newest ones are kept.
constexpr size_t kKept = 4096;

struct Texts {
  std::mutex mutex;
  std::deque<Failure> failures;
  int64_t first = 0;
};
Texts& KnownTexts() {
  static auto* const texts = new Texts;
  return *texts;
}

template <size_t kSize>
void Put(char (&to)[kSize], const std::string& text) {
  const size_t length = std::min(text.size(), kSize - 1);
  std::copy_n(text.data(), length, to);
  to[length] = '\0';
}

void DescribeHostFailure(const int64_t* values, moe_ep_failure_text* text) {
  Texts& texts = KnownTexts();
  std::lock_guard lock(texts.mutex);
  const int64_t index = values[0] - texts.first;
  const bool known = index >= 0 && index < static_cast<int64_t>(texts.failures.size());
  Put(text->code, known ? texts.failures[index].code : "ERR_MOE_EP_INTERNAL");
  Put(text->message, known ? texts.failures[index].message : "an operation failed long ago");
}

void DescribeAbort(const int64_t*, moe_ep_failure_text* text) {
  const Failure abort = AbortFailure();
  Put(text->code, abort.code);
  Put(text->message, abort.message);
}

}  // namespace

moe_ep_failure_record RecordOfAbort() {
  return {.failed = 1, .reserved = 0, .describe = DescribeAbort, .values = {}};
}

moe_ep_failure_record RecordOf(Failure failure) {
  Texts& texts = KnownTexts();
  std::lock_guard lock(texts.mutex);
  texts.failures.push_back(std::move(failure));
  if (texts.failures.size() > kKept) {
    texts.failures.pop_front();
    ++texts.first;
  }
  const int64_t id = texts.first + static_cast<int64_t>(texts.failures.size()) - 1;
  return {.failed = 1, .reserved = 0, .describe = DescribeHostFailure, .values = {id}};
}

MaybeFailure FailureOf(const moe_ep_failure_record& record) {
  if (record.failed == 0) return std::nullopt;
  moe_ep_failure_text text = {};
  record.describe(record.values, &text);
  return Failure{text.code, text.message};
}

}  // namespace moe_ep::cuda
