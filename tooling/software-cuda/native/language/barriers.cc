// Barriers of threads, and meetings of lanes.
#include <algorithm>
#include <cstring>
#include <string>

#include "grid_state.h"
#include "software_cuda.h"

namespace software_cuda {
namespace {

void Complete(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
  barrier.gathering.Complete();
  NoteProgress();
}

void CompleteMeeting(const Warp& warp, Meeting& meeting) {
  if (meeting.arrived == 0 || (meeting.mask & warp.lanes & ~(meeting.arrived | warp.ended)) != 0)
    return;
  meeting.given[meeting.generation & 1].lanes = meeting.arrived;
  meeting.arrived = 0;
  ++meeting.generation;
  meeting.gathering.Complete();
  NoteProgress();
}

void CompleteAll(Block& block) {
  if (block.all.arrived == 0 || block.all.arrived < block.alive) return;
  Complete(block.all);
  const uint32_t next = block.all.generation & 1;
  block.any_true[next] = false;
  block.all_true[next] = true;
}

void CompleteEverywhere(Grid& grid) {
  if (grid.everywhere.arrived == 0 || grid.everywhere.arrived != grid.alive) return;
  for (const std::unique_ptr<Block>& block : grid.resident) block->everywhere.Complete();
  Complete(grid.everywhere);
}

}  // namespace

void LeaveBarriers(Thread& thread) {
  Block& block = *thread.block;
  --block.alive;
  // The others may come before it ends or behind that: here they came before.
  if (block.alive == 0 && block.used_until == block.grid->everywhere.generation + 1)
    Misuse("a block may end before others have used its shared memory");
  --block.grid->alive;
  thread.warp->ended |= 1u << thread.lane;
  for (Meeting& meeting : thread.warp->meetings) CompleteMeeting(*thread.warp, meeting);
  CompleteAll(block);
  CompleteEverywhere(*block.grid);
}

// All who arrive at a barrier do it in the same way.
void CheckKind(Barrier& barrier, int kind) {
  if (barrier.arrived == 0) barrier.kind = kind;
  if (barrier.kind != kind) Misuse("threads meet at a barrier in different ways");
}

int SyncThreads(bool value, Join join) {
  Thread& thread = Self();
  Block& block = *thread.block;
  CheckKind(block.all, static_cast<int>(join));
  const uint32_t generation = block.all.generation;
  const uint32_t now = generation & 1;
  block.any_true[now] |= value;
  block.all_true[now] &= value;
  ++block.all.arrived;
  block.all.gathering.Add(thread);
  CompleteAll(block);
  if (block.all.generation == generation) WaitForOther(&block.all.generation, generation);
  block.all.gathering.Teach(thread, /*added=*/true);
  return join == Join::kAll ? block.all_true[now] : block.any_true[now];
}

void SyncNamed(int barrier, int threads) {
  Thread& thread = Self();
  Block& block = *thread.block;
  Barrier& named = block.named.at(barrier);
  if (threads % kWarp != 0) Misuse("a named barrier of parts of warps");
  CheckKind(named, threads);
  const uint32_t generation = named.generation;
  named.gathering.Add(thread);
  if (++named.arrived == threads) {
    Complete(named);
  } else {
    WaitForOther(&named.generation, generation);
  }
  named.gathering.Teach(thread, /*added=*/true);
}

void SyncGrid() {
  Thread& thread = Self();
  Grid& grid = *thread.block->grid;
  if (grid.blocks.x * grid.blocks.y * grid.blocks.z > 8) Misuse("a cluster of more than 8 blocks");
  const uint32_t generation = grid.everywhere.generation;
  ++grid.everywhere.arrived;
  thread.block->everywhere.Add(thread);
  CompleteEverywhere(grid);
  if (grid.everywhere.generation == generation)
    WaitForOther(&grid.everywhere.generation, generation);
  thread.block->everywhere.Teach(thread, /*added=*/true);
}

const Given& Exchange(uint32_t mask, uint64_t value, const char* kind) {
  Thread& thread = Self();
  Warp& warp = *thread.warp;
  if ((mask >> thread.lane & 1) == 0) Misuse("a lane is not in the mask that it meets by");
  auto found = std::find_if(warp.meetings.begin(), warp.meetings.end(),
                            [&](const Meeting& meeting) { return meeting.mask == mask; });
  if (found == warp.meetings.end()) found = warp.meetings.insert(found, Meeting{mask});
  Meeting& meeting = *found;
  if (meeting.arrived == 0) meeting.kind = kind;
  if (std::strcmp(meeting.kind, kind) != 0)
    Misuse(std::string("lanes meet for ") + meeting.kind + " and for " + kind);
  const uint32_t generation = meeting.generation;
  Given& given = meeting.given[generation & 1];
  given.values[thread.lane] = value;
  meeting.arrived |= 1u << thread.lane;
  // Of all ways to meet only this one orders what lanes do with memory.
  const bool orders = std::strcmp(kind, "syncwarp") == 0;
  if (orders) meeting.gathering.Add(thread);
  CompleteMeeting(warp, meeting);
  if (meeting.generation == generation) WaitForOther(&meeting.generation, generation);
  if (orders) meeting.gathering.Teach(thread, /*added=*/true);
  return given;
}

}  // namespace software_cuda
