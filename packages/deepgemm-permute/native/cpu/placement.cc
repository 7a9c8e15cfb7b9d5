#include "cpu/placement.h"

#include <string>

#include "cpu/slot_counts.h"

namespace moe_ep::cpu {
namespace {

int64_t RoundUp(int64_t value, int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

int64_t TotalOf(SlotCounts& slots, int64_t expert) {
  int64_t total = 0;
  for (int64_t chunk = 0; chunk < slots.num_chunks; ++chunk) total += slots.Chunk(chunk)[expert];
  return total;
}

// Rows needed with padding; -1 after exec.Fail.
int64_t NeededRows(const Exec& exec, const PlacementRequest& request, SlotCounts& slots) {
  int64_t needed = 0;
  for (int64_t expert = 0; expert < slots.num_experts; ++expert) {
    const int64_t total = TotalOf(slots, expert);
    const int64_t reserved = request.reserved == nullptr ? total : request.reserved[expert];
    if (reserved < total) {
      exec.Fail("ERR_MOE_EP_ARGUMENT", "expertNumTokens: expected at least " +
                                           std::to_string(total) + " for local expert " +
                                           std::to_string(expert) + ", received " +
                                           std::to_string(reserved));
      return -1;
    }
    needed += RoundUp(reserved, request.alignment);
  }
  if (needed > request.capacity) {
    exec.Fail("ERR_MOE_EP_CAPACITY", "permute: the output has " + std::to_string(request.capacity) +
                                         " rows, but " + std::to_string(needed) + " are needed");
    return -1;
  }
  return needed;
}

}  // namespace

int64_t PlaceRows(const Exec& exec, const PlacementRequest& request, const Placement& placement) {
  SlotCounts slots;
  if (!CountSlots(exec, request.experts, request.num_tokens * request.topk, request.topk, &slots))
    return -1;
  const int64_t needed = NeededRows(exec, request, slots);
  if (needed < 0) return -1;

  // Counts become the first row of each chunk's slots.
  int64_t start = 0;
  for (int64_t expert = 0; expert < slots.num_experts; ++expert) {
    int64_t row = start;
    for (int64_t chunk = 0; chunk < slots.num_chunks; ++chunk) {
      const int64_t count = slots.Chunk(chunk)[expert];
      slots.Chunk(chunk)[expert] = row;
      row += count;
    }
    placement.expert_start[expert] = start;
    placement.expert_num_tokens[expert] = static_cast<int32_t>(row - start);
    const int64_t reserved = request.reserved == nullptr ? row - start : request.reserved[expert];
    start += RoundUp(reserved, request.alignment);
  }

  exec.ParallelFor(slots.num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      int64_t* const next_row = slots.Chunk(chunk);
      const int64_t slots_end = slots.ChunkBegin(chunk + 1);
      for (int64_t slot = slots.ChunkBegin(chunk); slot < slots_end; ++slot) {
        const int64_t expert = request.experts[slot];
        placement.row_of_slot[slot] = expert < 0 ? -1 : static_cast<int32_t>(next_row[expert]++);
      }
    }
  });
  return needed;
}

}  // namespace moe_ep::cpu
