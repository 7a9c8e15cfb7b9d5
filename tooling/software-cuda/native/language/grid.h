// Grids in software: every thread of a kernel is a fiber, and all fibers of the blocks that are
// resident take turns on the thread of their stream. A fiber runs until it waits for others, so
// nothing happens in lockstep; whose turn is next is drawn by lot, and bulk copies are made at some
// moment between their start and the wait for them.
#pragma once

#include <vector_types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "hazards.h"

namespace software_cuda {

inline constexpr int kWarp = 32;

struct Grid;
struct Block;
struct Warp;

// A thread of a kernel.
struct Thread {
  uint3 index;
  int lane;
  Warp* warp;
  Block* block;
  void* stack_pointer = nullptr;
  bool ended = false;
  // It waits until this is another number than that.
  const uint32_t* wait_on = nullptr;
  uint32_t wait_value = 0;
  uint32_t bulk_groups = 0;   // of bulk stores, that were committed
  uint32_t stored_until = 0;  // the group behind the last that has stores
  uint32_t waited_until = 0;  // the group behind the last that was waited for
  Knowledge knowledge;
  // Bulk stores that were not waited for, and their groups.
  std::vector<std::pair<uint32_t, User>> stores;
  User words = {};  // the newest of its copies of words
};

// The one that runs; misuse outside of kernels.
Thread& Self();
// Lets others run: in every look at memory that others write, so that who waits by looking does not
// wait for ever.
void Yield();
// Now and then.
void MaybeYield();
// Any number; MOE_EP_SOFTWARE_SEED says where they begin.
uint32_t Draw();

// Runs `body` once for each thread, and comes back when all have ended.
void RunGrid(dim3 grid, dim3 block, uint64_t dynamic_shared_bytes,
             const std::function<void()>& body);

uint3 BlockIndex();
uint3 BlockDim();
uint3 GridDim();

// Barriers. Threads that have ended are not waited for, but by a named one, which counts.
enum class Join { kNone, kAny, kAll };
int SyncThreads(bool value, Join join);
void SyncNamed(int barrier, int threads);
void SyncGrid();  // of a cluster, which is a whole grid
// What lanes gave, and which did: those of the mask that have not ended. Valid until the lane's
// second exchange after this one. `kind` is the same for all who meet.
struct Given {
  std::array<uint64_t, kWarp> values;
  uint32_t lanes;
};
const Given& Exchange(uint32_t mask, uint64_t value, const char* kind);

// Memory of the block. `key` tells variables apart.
void* DynamicShared();
void* StaticShared(const void* key, uint64_t bytes);
uint32_t AddressOfShared(const void* pointer);
void* PointerToShared(uint32_t address);
// Where another block has what this one has at `pointer`.
void* SharedOf(const void* pointer, unsigned block);

template <typename T, typename Unique>
T& Shared() {
  static const char key = 0;
  return *static_cast<T*>(StaticShared(&key, sizeof(T)));
}

// Copies that go on beside the threads. One into shared memory tells a barrier in shared memory;
// those out of it are told of by groups of the thread that started them.
void StartBulkLoad(void* to, const void* from, uint32_t bytes, uint64_t* barrier);
void StartBulkStore(void* to, const void* from, uint32_t bytes);
void CommitBulkStores();
// `read`: shared memory may be written again, though nothing may have got there yet.
void WaitBulkStores(uint32_t groups_left, bool read);
// Single words into shared memory: copied at once, but not there before the thread has waited.
void StartWord(void* to, const void* from);
void WaitWords();

// A barrier in shared memory.
void InitBarrier(uint64_t* barrier, uint32_t arrivals);
void ArriveAtBarrier(uint64_t* barrier, int64_t expected_bytes);
// False after a wait, where it had not.
bool TryBarrier(const uint64_t* barrier, uint32_t parity);

}  // namespace software_cuda
