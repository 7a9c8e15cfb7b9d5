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
  int64_t agrees;        // 1: ranks settle on a mask, without rows
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
    "agree() called",
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
  int64_t refusal;  // 0, or why the source has nothing to dispatch: see RefusalNumber
};
inline constexpr int kNumHeadFields = sizeof(DispatchHead) / sizeof(int64_t);

// What a slot's signals tell: an epoch, which counts its dispatches, and a note. That messages are
// there says how many tokens the source has, for receivers that want to begin at once; that results
// are there says how they are encoded, so that ranks that disagree hear of it, or that there are
// none.
//
// A signal may grow in parts, one from each block of a kernel: parts are larger than any note, so
// that it does not reach an epoch before the last part.
inline constexpr uint64_t kNotes = 2048;
inline constexpr uint64_t kEpochStep = uint64_t{1} << 23;   // 2^41 epochs: no program sees the last
inline constexpr uint64_t kSignalPart = uint64_t{1} << 12;  // of all parts but one
MOE_EP_HOST_DEVICE constexpr uint64_t SignalOf(uint64_t epoch, int64_t note) {
  return epoch * kEpochStep + static_cast<uint64_t>(note);
}
MOE_EP_HOST_DEVICE constexpr int NoteOf(uint64_t signal) {
  return static_cast<int>(signal % kNotes);
}
// A note of results: how they are encoded; from kRefusal on the rank refused to combine, and has
// none. What is left of the note then is the number of an error's code: see failures.h.
enum ResultsNote : int64_t { kBf16Rows = 0, kLogRows = 1, kRefusal = 2 };
// Whether a signal of results says that its rank refused this very dispatch.
MOE_EP_HOST_DEVICE constexpr bool IsRefusalOf(uint64_t signal, uint64_t epoch) {
  return signal / kEpochStep == epoch && NoteOf(signal) >= kRefusal;
}
// The part of the `index`-th of `count`, where a signal grows by `growth`: at least
// kEpochStep - kNotes.
MOE_EP_HOST_DEVICE constexpr uint64_t SignalPart(uint64_t growth, unsigned index, unsigned count) {
  return index + 1 < count ? kSignalPart : growth - (count - 1) * kSignalPart;
}
inline constexpr unsigned kMostSignalParts = 1024;
static_assert(kEpochStep - kNotes - (kMostSignalParts - 1) * kSignalPart > kNotes);
enum class SignalKind : int64_t {
  kMessages = 0,  // a dispatch's head, tables and rows are there
  kFree = 1,      // the source has unpacked what this rank sent: its epoch, without a note
  kResults = 2,   // a combine's rows are there, or will not come
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
