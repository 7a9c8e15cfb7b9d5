// What ranks leave in one another's memory: messages with their headers, and what signals mean.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe_ep/host_device.h"

namespace moe_ep {

inline constexpr const char* kDispatchOperation = "low-latency dispatch";
inline constexpr const char* kCombineOperation = "low-latency combine";

inline constexpr int kMaxTopk = 32;
inline constexpr int64_t kGroupSize = 128;  // elements that share a scale

// One slot of a token whose expert lives at the receiver.
struct Selection {
  int32_t expert;  // local to the receiver; once received, the row among all experts' rows
  int32_t slot;    // of the token
  float weight;
};

// Opens a message: a token's row travels once to each rank that has one of its experts.
struct MessageHeader {
  int32_t token;  // at its source
  int32_t count;  // selections that follow, in the order of slots
  // How many lower ranks get this token, too: where the receiver's sum goes in the source's
  // results.
  int32_t place;
  int32_t reserved;

  MOE_EP_HOST_DEVICE Selection* selections() { return reinterpret_cast<Selection*>(this + 1); }
  MOE_EP_HOST_DEVICE const Selection* selections() const {
    return reinterpret_cast<const Selection*>(this + 1);
  }
};
static_assert(sizeof(MessageHeader) == 16 && sizeof(Selection) == 12);

constexpr int64_t HeaderBytes(int64_t topk) {
  return (static_cast<int64_t>(sizeof(MessageHeader)) +
          topk * static_cast<int64_t>(sizeof(Selection)) + 15) /
         16 * 16;
}

// How rows travel.
enum class RowFormat : int64_t { kBF16 = 0, kFp8 = 1, kFp8PowerOfTwo = 2 };

// Arguments that must be the same on every rank; all fields are compared.
struct SharedArguments {
  int64_t hidden;
  int64_t format;  // RowFormat
  int64_t topk;
  int64_t experts;
  int64_t has_weights;
  int64_t rank_major;  // 1: rows stay as they came, and one for each comes home
};
inline constexpr const char* kSharedArgumentNames[] = {
    "hidden", "format of rows", "topk", "numExperts", "topkWeights given", "rank-major layout",
};
inline constexpr int kNumSharedArguments = sizeof(SharedArguments) / sizeof(int64_t);
static_assert(kNumSharedArguments == sizeof(kSharedArgumentNames) / sizeof(const char*));

// What a source tells of its messages.
struct DispatchHead {
  SharedArguments arguments;
  int64_t count;          // messages
  int64_t invalid_token;  // -1, or the first token with an id that is no expert's: no rows then
  int64_t invalid_id;
};

// Of a slot, from each source. Epochs count a slot's dispatches.
enum class SignalKind : int64_t {
  kMessages = 0,  // a dispatch's messages are there
  kFree = 1,      // the source has unpacked what this rank sent
  kResults = 2,   // a combine's rows are there
};
inline constexpr int64_t kNumSignalKinds = 3;

// Byte offsets in the payload, from the first slot's; all slots look alike.
struct BufferLayout {
  int64_t slots;
  int64_t slot_bytes;  // distance between two slots
  int64_t max_hidden;
  int64_t max_tokens;
  int64_t max_topk;
  int64_t message_bytes;  // distance between two messages
  int64_t heads_offset;
  int64_t messages_offset;  // [source, max_tokens]
  int64_t results_offset;   // bf16 [max_tokens, max_topk, max_hidden]
  int64_t state_offset;     // of a cuda device: what the rank's own kernels remember of the slot
};

// Bytes of a message of any format.
constexpr int64_t MessageBytes(int64_t hidden, int64_t topk) {
  const int64_t bf16 = hidden * 2;
  const int64_t groups = (hidden + kGroupSize - 1) / kGroupSize;
  const int64_t fp8 = (hidden + 3) / 4 * 4 + groups * 4;
  return HeaderBytes(topk) + ((bf16 > fp8 ? bf16 : fp8) + 15) / 16 * 16;
}

}  // namespace moe_ep
