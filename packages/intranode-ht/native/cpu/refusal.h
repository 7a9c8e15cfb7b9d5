// Why a rank cannot take its part in a call that all ranks make; it travels in its place.
#pragma once

#include <cstring>
#include <string>

#include "moe_ep/command.h"

namespace moe_ep::cpu {

// Texts end with a zero. A field of fixed size costs the calls that are right nothing but its
// place.
struct Refusal {
  char code[40];  // empty: the rank takes part
  char words[472];

  bool given() const { return code[0] != '\0'; }
  void Clear() { code[0] = '\0'; }
};

// What does not fit is cut off.
inline Refusal MakeRefusal(const std::string& code, const std::string& words) {
  Refusal refusal = {};
  std::strncpy(refusal.code, code.c_str(), sizeof(refusal.code) - 1);
  std::strncpy(refusal.words, words.c_str(), sizeof(refusal.words) - 1);
  return refusal;
}

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
