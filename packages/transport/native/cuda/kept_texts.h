// Texts that failure records refer to by address.
#pragma once

#include <string>

namespace moe_ep::cuda {

// The one copy of this text, which is never freed: a record that names it may be read at any time.
const std::string* KeepText(std::string text);

}  // namespace moe_ep::cuda
