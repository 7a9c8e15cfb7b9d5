#include "cpu/placement.h"

#include <algorithm>

#include "cpu/slot_counts.h"
#include "messages.h"

namespace moe_ep::cpu {
namespace {

bool RequireReserved(const Exec& exec, const PlacementRequest& request, const SlotCounts& slots) {
  for (int64_t expert = 0; expert < request.experts.num_local; ++expert) {
    const int64_t total = slots.Total(expert);
    if (request.reserved[expert] >= total) continue;
    exec.Fail("ERR_MOE_EP_ARGUMENT", messages::Reserved(total, expert, request.reserved[expert]));
    return false;
  }
  return true;
}

bool RequireRoom(const Exec& exec, const PlacementRequest& request, const SlotCounts& slots) {
  if (request.rows_per_expert > 0) {
    int64_t fullest = 0;
    for (int64_t expert = 1; expert < request.experts.num_local; ++expert)
      if (slots.Total(expert) > slots.Total(fullest)) fullest = expert;
    const int64_t needed = slots.Total(fullest);
    if (needed <= request.rows_per_expert) return true;
    exec.Fail("ERR_MOE_EP_CAPACITY",
              messages::MaskedCapacity(request.rows_per_expert, needed, fullest));
    return false;
  }
  int64_t needed = 0;
  for (int64_t expert = 0; expert < request.experts.num_local; ++expert)
    needed += request.RowsOf(expert, slots.Total(expert));
  if (needed <= request.capacity) return true;
  exec.Fail("ERR_MOE_EP_CAPACITY", messages::Capacity(request.capacity, needed));
  return false;
}

// Turns the counts of a group into the first row of each chunk's slots. Returns their number.
int64_t StartRows(SlotCounts& slots, int64_t group, int64_t start) {
  int64_t row = start;
  for (int64_t chunk = 0; chunk < slots.num_chunks; ++chunk) {
    const int64_t count = slots.Chunk(chunk)[group];
    slots.Chunk(chunk)[group] = row;
    row += count;
  }
  return row - start;
}

}  // namespace

int64_t PlaceRows(const Exec& exec, const PlacementRequest& request, const Placement& placement) {
  const SlotGroups groups{.experts = request.experts, .foreign = request.foreign_last};
  SlotCounts slots;
  if (!CountSlots(exec, groups, request.num_tokens * request.topk, request.topk, &slots)) return -1;
  if (request.reserved != nullptr && !RequireReserved(exec, request, slots)) return -1;
  if (!RequireRoom(exec, request, slots)) return -1;

  const int64_t num_local = request.experts.num_local;
  int64_t start = 0;
  for (int64_t expert = 0; expert < num_local; ++expert) {
    const int64_t total = StartRows(slots, expert, start);
    placement.expert_start[expert] = start;
    placement.expert_num_tokens[expert] = static_cast<int32_t>(total);
    if (placement.expert_end != nullptr)
      placement.expert_end[expert] = static_cast<int32_t>(start + total);
    start += request.RowsOf(expert, total);
  }
  const int64_t needed = start;
  placement.expert_start[num_local] = needed;
  for (int64_t group = num_local; group < slots.num_groups; ++group)
    start += StartRows(slots, group, start);

  exec.ParallelFor(slots.num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      int64_t* const next_row = slots.Chunk(chunk);
      const int64_t slots_end = slots.ChunkBegin(chunk + 1);
      for (int64_t slot = slots.ChunkBegin(chunk); slot < slots_end; ++slot) {
        const int64_t group = groups[slot];
        placement.row_of_slot[slot] = group < 0 ? -1 : static_cast<int32_t>(next_row[group]++);
      }
    }
  });
  return needed;
}

}  // namespace moe_ep::cpu
