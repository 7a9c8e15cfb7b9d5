#include "cuda/poison_words.h"

namespace moe_ep::cuda {
namespace {

const char* NameOf(Operation operation) {
  switch (operation) {
    case Operation::kWait:
      return "wait";
    case Operation::kIntranodeDispatch:
      return "intranode dispatch";
    case Operation::kIntranodeCombine:
      return "intranode combine";
    case Operation::kLowLatencyDispatch:
      return "low-latency dispatch";
    case Operation::kLowLatencyCombine:
      return "low-latency combine";
  }
  return "an operation";
}

const char* NameOf(Missing missing) {
  switch (missing) {
    case Missing::kSignal:
      return "signal";
    case Missing::kCounts:
      return "counts";
    case Missing::kFreeSlot:
      return "word that its slot is free";
    case Missing::kCombineRead:
      return "word that it has read the last combine";
    case Missing::kRows:
      return "rows";
    case Missing::kResults:
      return "results";
    case Missing::kCall:
      return "call";
    case Missing::kMessages:
      return "messages";
  }
  return "word";
}

std::string MissingOf(PoisonWord word) {
  const std::string operation = NameOf(word.operation);
  if (word.operation == Operation::kWait)
    return operation + ": signal " + std::to_string(word.SignalIndex()) + " did not come";
  const std::string from =
      std::string(": no ") + NameOf(word.missing) + " from rank " + std::to_string(word.peer);
  // A refused call has no slot.
  if (word.missing == Missing::kCall)
    return operation + ", refused by rank " + std::to_string(word.rank) + from;
  return operation + ", slot " + std::to_string(word.slot) + from;
}

}  // namespace

const char* CodeOf(PoisonWord word) {
  return word.cause == PoisonWord::kAborted ? "ERR_MOE_EP_ABORTED" : "ERR_MOE_EP_TIMEOUT";
}

std::string WordsOf(PoisonWord::Cause cause, int rank, const std::string& missing) {
  const std::string who = "rank " + std::to_string(rank);
  return cause == PoisonWord::kAborted ? who + " closed its stream while it waited: " + missing
                                       : who + ": deadline passed: " + missing;
}

std::string WordsOf(PoisonWord word) { return WordsOf(word.cause, word.rank, MissingOf(word)); }

}  // namespace moe_ep::cuda
