#include "cuda/poison_texts.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/failure_text.h"
#include "cuda/poison_words.h"
#include "moe_ep/transport/poison_record.h"

namespace moe_ep::cuda {
namespace {

// Nobody knows when the text of an unmapped block is needed no more: the newest ones are kept.
constexpr size_t kKept = 4096;

struct Entry {
  std::mutex mutex;  // held while the block is read, so that it stays mapped
  const ControlBlock* control;
  std::string code;
  std::string message;

  void Read() {
    if (control == nullptr) return;
    if (AwaitWritten(control->poison)) {
      code = control->poison.code;
      message = control->poison.message;
    } else {
      code = kLostWriterCode;
      message = kLostWriterMessage;
    }
  }
};

struct Texts {
  std::mutex mutex;
  int64_t next = 1;
  std::map<int64_t, std::shared_ptr<Entry>> entries;
  std::deque<int64_t> unmapped;

  std::shared_ptr<Entry> Find(int64_t id) {
    std::lock_guard lock(mutex);
    const auto found = entries.find(id);
    return found == entries.end() ? nullptr : found->second;
  }
};

Texts& KnownTexts() {
  static auto* const texts = new Texts;
  return *texts;
}

}  // namespace

int64_t AddPoisonText(const ControlBlock* control) {
  auto entry = std::make_shared<Entry>();
  entry->control = control;
  Texts& texts = KnownTexts();
  std::lock_guard lock(texts.mutex);
  texts.entries[texts.next] = std::move(entry);
  return texts.next++;
}

void KeepPoisonText(int64_t id) {
  Texts& texts = KnownTexts();
  const std::shared_ptr<Entry> entry = texts.Find(id);
  if (entry == nullptr) return;
  bool poisoned = false;
  {
    std::lock_guard lock(entry->mutex);
    poisoned = entry->control->poison.state.load(std::memory_order_acquire) != PoisonRecord::kFine;
    if (poisoned) entry->Read();
    entry->control = nullptr;
  }
  std::lock_guard lock(texts.mutex);
  if (!poisoned) {
    texts.entries.erase(id);
    return;
  }
  texts.unmapped.push_back(id);
  if (texts.unmapped.size() <= kKept) return;
  texts.entries.erase(texts.unmapped.front());
  texts.unmapped.pop_front();
}

void DescribePoison(const int64_t* values, moe_ep_failure_text* text) {
  const auto word = static_cast<uint64_t>(values[0]);
  if (word != 0) {
    const PoisonWord cause = PoisonWord::Unpack(word);
    return SetFailureText(text, CodeOf(cause), WordsOf(cause));
  }
  const std::shared_ptr<Entry> entry = KnownTexts().Find(values[2]);
  if (entry == nullptr) {
    return SetFailureText(text, "ERR_MOE_EP_INTERNAL",
                          "rank " + std::to_string(values[1]) + ": the group failed long ago");
  }
  std::lock_guard lock(entry->mutex);
  entry->Read();
  SetFailureText(text, entry->code, entry->message);
}

}  // namespace moe_ep::cuda
