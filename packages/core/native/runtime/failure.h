// An error on its way from a device or queue to the next await.
#pragma once

#include <optional>
#include <string>

namespace moe_ep {

struct Failure {
  std::string code;
  std::string message;
};

using MaybeFailure = std::optional<Failure>;

}  // namespace moe_ep
