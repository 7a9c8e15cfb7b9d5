// What ranks leave in one another's memory, and what signals mean.
//
// A source tells every rank the ids of all its tokens, and puts rows at places that follow from the
// token. So nobody counts before rows travel, and receivers find order and places in the ids.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe_ep/host_device.h"
#include "row_format.h"

namespace moe_ep {

inline constexpr const char* kDispatchOperation = "low-latency dispatch";
inline constexpr const char* kCombineOperation = "low-latency combine";

inline constexpr int kMaxTopk = 32;

// Tables of ids and weights have rows of whole vectors of 16 bytes; what is past the last slot is
// -1.
MOE_EP_HOST_DEVICE constexpr int64_t PaddedTopk(int64_t topk) { return (topk + 3) / 4 * 4; }

// Arguments that must be the same on every rank; all fields are compared.
struct SharedArguments {
  int64_t hidden;
  int64_t format;  // RowFormat
  int64_t topk;
  int64_t experts;
  int64_t has_weights;
  int64_t rank_major;    // 1: rows stay as they came, and one for each comes home
  int64_t global_scale;  // of NVFP4: the f32's bits, which the sender fills in; else 0
  int64_t mask;          // ranks that take no part, a bit each; the sender fills it in
};
inline constexpr const char* kSharedArgumentNames[] = {
    "hidden",
    "format of rows",
    "topk",
    "numExperts",
    "topkWeights given",
    "rank-major layout",
    "xGlobalScale (bits of the f32)",
    "mask of ranks",
};
inline constexpr int kNumSharedArguments = sizeof(SharedArguments) / sizeof(int64_t);
static_assert(kNumSharedArguments == sizeof(kSharedArgumentNames) / sizeof(const char*));
inline constexpr int kMaskArgument = offsetof(SharedArguments, mask) / sizeof(int64_t);

// What a source tells every rank of a dispatch, beside the ids and weights of all its tokens.
struct DispatchHead {
  SharedArguments arguments;
  int64_t tokens;         // of the source
  int64_t invalid_token;  // -1, or the first token with an id that is no expert's: no rows then
  int64_t invalid_id;
};
inline constexpr int kNumHeadFields = sizeof(DispatchHead) / sizeof(int64_t);

// Of a slot, from each source. Epochs count a slot's dispatches; that messages are there says how
// many tokens the source has, too, for receivers that want to begin at once.
inline constexpr uint64_t kTokensInSignal = 2048;
MOE_EP_HOST_DEVICE constexpr uint64_t MessagesSignal(uint64_t epoch, int64_t tokens) {
  return epoch * kTokensInSignal + static_cast<uint64_t>(tokens);
}
// That results are there says how they are encoded: ranks that disagree hear of it.
inline constexpr uint64_t kResultEncodings = 2;
MOE_EP_HOST_DEVICE constexpr uint64_t ResultsSignal(uint64_t epoch, bool logfmt) {
  return epoch * kResultEncodings + (logfmt ? 1 : 0);
}
enum class SignalKind : int64_t {
  kMessages = 0,  // a dispatch's head, tables and rows are there
  kFree = 1,      // the source has unpacked what this rank sent
  kResults = 2,   // a combine's rows are there
};
inline constexpr int64_t kNumSignalKinds = 3;

// Ranks that take part in a dispatch, a bit each. Masks are for worlds of up to 64 ranks; in larger
// ones all take part.
using RankBits = uint64_t;
MOE_EP_HOST_DEVICE constexpr bool TakesPart(RankBits bits, int rank) {
  return rank >= 64 || (bits >> rank & 1) != 0;
}
MOE_EP_HOST_DEVICE constexpr RankBits BitOf(int rank) { return RankBits{1} << rank; }

// Byte offsets in the payload, from the first slot's; all slots look alike.
struct BufferLayout {
  int64_t slots;
  int64_t slot_bytes;  // distance between two slots
  int64_t max_hidden;
  int64_t max_tokens;
  int64_t max_topk;
  int64_t messages_per_token;  // 1: a row for each rank; max_topk: one for each selection
  int64_t message_bytes;       // distance between two messages
  int64_t heads_offset;        // [source]
  int64_t ids_offset;          // i32 [source, max_tokens, PaddedTopk(max_topk)]
  int64_t weights_offset;      // f32 of the same shape
  int64_t messages_offset;     // [source, max_tokens, messages_per_token]
  int64_t results_offset;      // bf16 [max_tokens, results_per_token, max_hidden]
  int64_t state_offset;        // of a cuda device: what the rank's own kernels remember of the slot
  int64_t results_per_token;   // max_topk; with masks not less than ranks
  int64_t results_by_rank;     // with masks: each rank has places of its own, so that one that was
                               // given up does no harm when it goes on
};

}  // namespace moe_ep
