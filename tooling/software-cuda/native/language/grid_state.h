// What the parts of a grid share.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "grid.h"

namespace software_cuda {

// Lanes of one mask that meet.
struct Meeting {
  uint32_t mask;
  uint32_t arrived = 0;
  uint32_t generation = 0;
  const char* kind = "";
  Given given[2] = {};
  Gathering gathering;
};

struct Warp {
  uint32_t lanes = 0;  // that there are
  uint32_t ended = 0;
  std::deque<Meeting> meetings;
};

struct Barrier {
  int arrived = 0;
  uint32_t generation = 0;
  int kind = 0;  // of those who have arrived
  Gathering gathering;
};

struct BulkCopy {
  void* to;
  const void* from;
  uint32_t bytes;
  uint64_t* barrier;          // null: a store
  std::vector<uint8_t> read;  // what a store has read already
  const Thread* thread;       // that started it
  uint32_t group;             // of that thread's stores
  User user;
};

struct Block {
  Grid* grid;
  uint3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int alive = 0;
  // Barriers of the whole grid that there had been when another block used its shared memory last,
  // and one more; 0: none did.
  uint32_t used_until = 0;
  Barrier all;
  bool any_true[2] = {false, false};
  bool all_true[2] = {true, true};
  std::array<Barrier, 16> named;
  std::unique_ptr<uint8_t[]> memory;
  uint8_t* shared = nullptr;
  std::vector<BulkCopy> copies;
  size_t first_stack = 0;
  // Where hazards are looked for.
  std::unique_ptr<Uses> uses;
  Gathering everywhere;  // at barriers of the whole grid
  std::map<const uint64_t*, Gathering> at_barriers;

  // At a barrier in shared memory; null where nobody looks.
  Gathering* At(const uint64_t* barrier) {
    return uses == nullptr ? nullptr : &at_barriers[barrier];
  }

  bool HasShared(const void* pointer, uint64_t bytes) const;
  uint64_t OffsetOf(const void* pointer) const {
    return static_cast<uint64_t>(static_cast<const uint8_t*>(pointer) - shared);
  }
};

struct Grid {
  dim3 blocks;
  dim3 block;
  uint64_t dynamic_bytes;
  const std::function<void()>* body;
  std::vector<std::pair<const void*, uint64_t>> statics;  // offsets
  uint64_t static_bytes = 0;
  std::vector<std::unique_ptr<Block>> resident;
  Barrier everywhere;
  int alive = 0;  // threads of resident blocks
};

// Of kernels' own declarations, in a block; each begins at a multiple of the other.
inline constexpr uint64_t kStaticBytes = uint64_t{48} << 10;
inline constexpr uint64_t kApart = 128;
inline uint64_t RoundedUp(uint64_t bytes) { return (bytes + kApart - 1) / kApart * kApart; }

// Where they begin.
inline uint64_t StaticsOf(const Grid& grid) { return RoundedUp(grid.dynamic_bytes); }

inline bool Block::HasShared(const void* pointer, uint64_t bytes) const {
  const auto* const at = static_cast<const uint8_t*>(pointer);
  const uint8_t* const dynamic_end = shared + grid->dynamic_bytes;
  const uint8_t* const end =
      at < dynamic_end ? dynamic_end : shared + StaticsOf(*grid) + kStaticBytes;
  return at >= shared && at + bytes <= end;
}

// The one that runs; null outside of kernels.
extern thread_local Thread* running_thread;

// Something has happened that others may have waited for.
void NoteProgress();
// The calling thread goes on when the number is another one.
void WaitForOther(const uint32_t* number, uint32_t value);

// Whoever may go on because a thread has ended.
void LeaveBarriers(Thread& thread);

// Some of the copies that go on, in any order. Whether there was one.
bool MakeCopies(Block& block);
// All that are left of a block that has ended.
void MakeLastCopies(Block& block);
// Of a thread that ends: its shared memory may be another's soon.
void CheckBulkStoresDone(const Thread& thread);

}  // namespace software_cuda
