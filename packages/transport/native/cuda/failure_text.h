// Filling in what a failure record's describe function gives.
#pragma once

#include <algorithm>
#include <string>

#include "moe_ep/abi.h"

namespace moe_ep::cuda {

template <size_t kSize>
void CutTo(char (&to)[kSize], const std::string& text) {
  const size_t length = std::min(text.size(), kSize - 1);
  std::copy_n(text.data(), length, to);
  to[length] = '\0';
}

// Longer texts are cut.
inline void SetFailureText(moe_ep_failure_text* text, const std::string& code,
                           const std::string& message) {
  CutTo(text->code, code);
  CutTo(text->message, message);
}

}  // namespace moe_ep::cuda
