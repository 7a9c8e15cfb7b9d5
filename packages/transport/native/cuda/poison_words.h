// The code and the message of a poison word, in the cpu's own words.
#pragma once

#include <string>

#include "moe_ep/transport/poison_word.h"

namespace moe_ep::cuda {

const char* CodeOf(PoisonWord word);
std::string WordsOf(PoisonWord word);
// The same for a wait whose missing part has words of its own.
std::string WordsOf(PoisonWord::Cause cause, int rank, const std::string& missing);

}  // namespace moe_ep::cuda
