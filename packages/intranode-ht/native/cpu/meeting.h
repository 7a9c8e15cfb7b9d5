// Where ranks agree on one dispatch: each leaves a message at every other.
#pragma once

#include "cpu/buffer.h"

namespace moe_ep::cpu {

inline constexpr const char* kDispatchOperation = "intranode dispatch";

// A message as it lies at its destination:
// MessageHead | i32 tokens per rank [R] | i32 selections of every expert [max_experts] |
// i32 tokens of channels 0..c for the destination [max_channels]
struct Message {
  uint8_t* base;
  int64_t ranks;
  int64_t max_experts;

  MessageHead& head() const { return *reinterpret_cast<MessageHead*>(base); }
  int32_t* tokens_per_rank() const {
    return reinterpret_cast<int32_t*>(base + sizeof(MessageHead));
  }
  int32_t* per_expert() const { return tokens_per_rank() + ranks; }
  int32_t* channel_ends() const { return per_expert() + max_experts; }
};

struct Meeting {
  const Buffer& buffer;
  int64_t slot;
  uint64_t epoch;

  // What `source` told this rank.
  Message From(int source) const { return At(buffer.routes.rank(), source); }
  // What this rank tells `peer`.
  Message To(int peer) const { return At(peer, buffer.routes.rank()); }

 private:
  Message At(int rank, int source) const {
    return {buffer.Counts(rank, slot, source, epoch), buffer.routes.world_size(),
            buffer.layout.max_experts};
  }
};

}  // namespace moe_ep::cpu
