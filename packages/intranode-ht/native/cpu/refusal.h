// How a rank hears that another cannot take its part in a call.
#pragma once

#include <string>

#include "moe_ep/command.h"
#include "protocol.h"

namespace moe_ep::cpu {

// False, with the stream in failure as the refusing rank's call is, when a rank gave a refusal.
// `refusal_of(rank)` finds it. All ranks look in the same order, so all report the same one.
template <typename RefusalOf>
bool CheckRefusals(const Exec& exec, int world_size, const char* operation,
                   const RefusalOf& refusal_of) {
  for (int rank = 0; rank < world_size; ++rank) {
    const Refusal& refusal = refusal_of(rank);
    if (!refusal.given()) continue;
    exec.Fail(refusal.code, std::string(operation) + ": refused by rank " + std::to_string(rank) +
                                ": " + refusal.words);
    return false;
  }
  return true;
}

}  // namespace moe_ep::cpu
