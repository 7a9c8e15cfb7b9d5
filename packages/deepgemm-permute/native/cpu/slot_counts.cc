#include "cpu/slot_counts.h"

#include <algorithm>

#include "messages.h"

namespace moe_ep::cpu {
namespace {

constexpr int64_t kSlotsPerChunk = 512;
constexpr int64_t kMaxChunks = 64;

}  // namespace

int64_t SlotCounts::Total(int64_t group) const {
  int64_t total = 0;
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk)
    total += of_chunk[static_cast<size_t>(chunk * num_groups + group)];
  return total;
}

bool CountSlots(const Exec& exec, const SlotGroups& groups, int64_t num_slots, int64_t topk,
                SlotCounts* counts) {
  counts->num_slots = num_slots;
  counts->num_chunks = std::clamp<int64_t>(num_slots / kSlotsPerChunk, 1, kMaxChunks);
  counts->num_groups = groups.size();
  counts->of_chunk.assign(static_cast<size_t>(counts->num_chunks * counts->num_groups), 0);
  std::vector<int64_t> first_invalid(static_cast<size_t>(counts->num_chunks), -1);
  exec.ParallelFor(counts->num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      int64_t* const count = counts->Chunk(chunk);
      const int64_t slots_end = counts->ChunkBegin(chunk + 1);
      for (int64_t slot = counts->ChunkBegin(chunk); slot < slots_end; ++slot) {
        const int64_t group = groups[slot];
        if (group >= 0) {
          ++count[group];
        } else if (group == kInvalidExpert) {
          first_invalid[static_cast<size_t>(chunk)] = slot;
          break;
        }
      }
    }
  });
  for (const int64_t slot : first_invalid) {
    if (slot < 0) continue;
    FailForSlot(exec, groups.experts, slot, topk);
    return false;
  }
  return true;
}

void FailForSlot(const Exec& exec, const LocalExperts& experts, int64_t slot, int64_t topk) {
  const int64_t id = experts.Id(slot);
  const int64_t token = slot / topk;
  const bool in_map = experts.map != nullptr && id >= 0 && id < experts.num_global;
  exec.Fail("ERR_MOE_EP_ARGUMENT",
            in_map ? messages::ExpertMap(experts.map[id], id, experts.num_local, token, slot % topk)
                   : messages::TopkIdx(id, experts.num_global, token, slot % topk));
}

void CountExpertNumTokens(const Exec& exec, const LocalExperts& experts, int64_t num_slots,
                          int64_t topk, int32_t* counts) {
  SlotCounts slots;
  if (!CountSlots(exec, {.experts = experts, .foreign = false}, num_slots, topk, &slots)) return;
  for (int64_t expert = 0; expert < experts.num_local; ++expert)
    counts[expert] = static_cast<int32_t>(slots.Total(expert));
}

}  // namespace moe_ep::cpu
