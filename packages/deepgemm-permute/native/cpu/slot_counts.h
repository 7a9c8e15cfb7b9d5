// Counts of slots for each group of slots, by chunks of slots, so that every chunk knows where its
// rows begin.
#pragma once

#include <cstdint>
#include <vector>

#include "moe_ep/command.h"
#include "moe_ep/deepgemm_permute/local_experts.h"
#include "slot_groups.h"

namespace moe_ep::cpu {

// Chunks are ranges of slots in token-major order. Their number depends on the input only, not on
// the threads.
struct SlotCounts {
  int64_t num_slots;
  int64_t num_chunks;
  int64_t num_groups;
  std::vector<int64_t> of_chunk;  // [num_chunks, num_groups]

  int64_t ChunkBegin(int64_t chunk) const { return num_slots * chunk / num_chunks; }
  int64_t* Chunk(int64_t chunk) { return of_chunk.data() + chunk * num_groups; }
  int64_t Total(int64_t group) const;
};

// False after exec.Fail: an id is out of range. `topk` serves the message.
bool CountSlots(const Exec& exec, const SlotGroups& groups, int64_t num_slots, int64_t topk,
                SlotCounts* counts);

// Fails the stream for the slot's id.
void FailForSlot(const Exec& exec, const LocalExperts& experts, int64_t slot, int64_t topk);

// counts[e] = slots of local expert e.
void CountExpertNumTokens(const Exec& exec, const LocalExperts& experts, int64_t num_slots,
                          int64_t topk, int32_t* counts);

}  // namespace moe_ep::cpu
