#include "cuda/kept_texts.h"

#include <mutex>
#include <set>
#include <utility>

namespace moe_ep::cuda {

const std::string* KeepText(std::string text) {
  static std::mutex mutex;
  static auto* const texts = new std::set<std::string>;
  std::lock_guard lock(mutex);
  return &*texts->insert(std::move(text)).first;
}

}  // namespace moe_ep::cuda
