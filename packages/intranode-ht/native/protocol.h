// What ranks leave in one another's memory, the same on the cpu and on GPUs: messages, heads of
// results, the layout of the payload and what signals mean.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "moe_ep/host_device.h"

namespace moe_ep {

inline constexpr const char* kDispatchOperation = "intranode dispatch";
inline constexpr const char* kCombineOperation = "intranode combine";

// Why a rank cannot take its part in a call that all ranks make; it travels in its place.
// Texts end with a zero. A field of fixed size costs the calls that are right nothing but its
// place.
struct Refusal {
  char code[40];  // empty: the rank takes part
  char words[472];

  MOE_EP_HOST_DEVICE bool given() const { return code[0] != '\0'; }
  MOE_EP_HOST_DEVICE void Clear() { code[0] = '\0'; }
};

// What does not fit is cut off.
inline Refusal MakeRefusal(const std::string& code, const std::string& words) {
  Refusal refusal = {};
  std::strncpy(refusal.code, code.c_str(), sizeof(refusal.code) - 1);
  std::strncpy(refusal.words, words.c_str(), sizeof(refusal.words) - 1);
  return refusal;
}

// Arguments that must be the same on every rank; they travel with the counts. All fields are
// compared.
struct SharedArguments {
  int64_t call;    // number of the dispatch: tells two apart that ranks started in different orders
  int64_t cached;  // 1: a plan is reused and no counts follow
  int64_t row_bytes;
  int64_t dtype;
  int64_t scale_columns;
  int64_t topk;
  int64_t topk_bytes;  // 4 or 8, the width of ids
  int64_t experts;
  int64_t channels;
  int64_t expert_alignment;
  int64_t has_weights;
  int64_t grouped;      // 1: rows go to their experts' places instead of one place a token
  int64_t plan_digest;  // of a cached plan's counts; 0 without a plan
};
inline constexpr const char* kSharedArgumentNames[] = {
    "number of the dispatch",
    "cached plan",
    "bytes of a row",
    "dtype",
    "scale columns",
    "topk",
    "bytes of an id",
    "numExperts",
    "numChannels",
    "expertAlignment",
    "topkWeights given",
    "grouped by expert",
    "digest of the plan",
};
inline constexpr int kNumSharedArguments = sizeof(SharedArguments) / sizeof(int64_t);
// An id that a rank cannot dispatch; it travels with the counts so that all ranks refuse alike.
struct InvalidId {
  int64_t token;  // -1: none
  int64_t id;
};

struct MessageHead {
  SharedArguments arguments;
  InvalidId invalid;
  int64_t
      room;  // rows that the rank can take: less than the capacity when they go to its own memory
  int64_t tokens;  // that the rank dispatches
  Refusal refusal;
};

static_assert(kNumSharedArguments == sizeof(kSharedArgumentNames) / sizeof(const char*));

// What all ranks must agree on in a combine.
struct CombineArguments {
  int64_t columns;
  int64_t dtype;
  int64_t topk;  // columns of the weights that are reduced too; 0: none
};

// Each rank leaves it in its own slot, beside the results that it describes.
struct CombineHead {
  CombineArguments arguments;
  int64_t tokens;  // of the rank, for those who add up its rows
  Refusal refusal;
};

// Byte offsets in the payload, from the first slot's; all slots look alike.
struct BufferLayout {
  int64_t slots;
  int64_t slot_bytes;  // distance between two slots
  int64_t capacity;    // rows of a slot
  int64_t max_row_bytes;
  int64_t max_scale_columns;
  int64_t max_topk;
  int64_t max_experts;
  int64_t max_channels;
  int64_t rows_offset;
  int64_t scales_offset;
  int64_t source_index_offset;
  int64_t topk_idx_offset;
  int64_t topk_weights_offset;
  int64_t counts_offset;  // two messages a source: for even and for odd epochs
  int64_t counts_stride;
  int64_t combine_head_offset;
  int64_t
      column_scales_offset;  // scales of grouped rows, turned into columns by the receiver itself
  int64_t epochs_offset;     // of a cuda device: what the rank's own kernels remember of the slot
  // Of a cuda device, for rows that are grouped by expert, by runs of tokens:
  int64_t max_runs;        // of a rank
  int64_t places_offset;   // where the rank's own selections are (see TokenPlaces), for others
  int64_t sent_offset;     // u64 [R, runs]: the dispatch in which a rank has sent a run's rows
  int64_t reduced_offset;  // u64 [R, runs]: the combine for which a rank has added up a run's rows
};
inline constexpr int kNumLayoutFields = sizeof(BufferLayout) / sizeof(int64_t);

// What the signals of a slot mean. Each rank has one of every kind from every source.
enum class SignalKind : uint64_t {
  kCounts = 0,        // the source's slot is free and its counts are here
  kRows = 1,          // the source's rows are here
  kCombineReady = 2,  // the source's results lie in its slot
  kCombineRead = 3,   // the source has read this rank's results
};
inline constexpr uint64_t kNumSignalKinds = 4;

// Signals of a source that no slot has: each tells of one refused dispatch. A call and the one so
// many later share a signal. No rank is that far ahead of itself on another stream, for no more
// dispatches can be in flight.
inline constexpr int64_t kRefusalSignals = 64;

// A message as it lies at its destination:
// MessageHead | i32 tokens per rank [R] | i32 selections of every expert [max_experts] |
// i32 tokens of channels 0..c for the destination [max_channels]
struct Message {
  uint8_t* base;
  int64_t ranks;
  int64_t max_experts;

  MOE_EP_HOST_DEVICE MessageHead& head() const { return *reinterpret_cast<MessageHead*>(base); }
  MOE_EP_HOST_DEVICE int32_t* tokens_per_rank() const {
    return reinterpret_cast<int32_t*>(base + sizeof(MessageHead));
  }
  MOE_EP_HOST_DEVICE int32_t* per_expert() const { return tokens_per_rank() + ranks; }
  MOE_EP_HOST_DEVICE int32_t* channel_ends() const { return per_expert() + max_experts; }
};

// Tokens that are worked on, and told of, together.
inline constexpr int64_t kRunTokens = 16;

// Where the selections of one run of tokens are: of each slot the row at its rank (-1: none), the
// weight and the rank. It is fetched as a whole.
struct TokenPlaces {
  uint8_t* base;
  int64_t topk;

  static constexpr int64_t Bytes(int64_t topk) {
    return kRunTokens * topk *
           static_cast<int64_t>(sizeof(int32_t) + sizeof(float) + sizeof(uint8_t));
  }
  MOE_EP_HOST_DEVICE int32_t* rows() const { return reinterpret_cast<int32_t*>(base); }
  MOE_EP_HOST_DEVICE float* weights() const {
    return reinterpret_cast<float*>(rows() + kRunTokens * topk);
  }
  MOE_EP_HOST_DEVICE uint8_t* ranks() const {
    return reinterpret_cast<uint8_t*>(weights() + kRunTokens * topk);
  }
};

// What the kernels of one rank remember of a slot between calls, where graphs that are replayed
// find it: epochs count calls, so signals need no cleaning.
struct SlotEpochs {
  uint64_t dispatch;
  uint64_t settled;  // the newest dispatch whose counts all ranks agreed on: only its rows may be
                     // sent
  uint64_t combine;
};

}  // namespace moe_ep
