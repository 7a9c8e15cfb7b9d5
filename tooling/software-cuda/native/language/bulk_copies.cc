// Bulk copies, and the barriers in shared memory that tell of them.
#include <cstring>
#include <utility>

#include "grid_state.h"
#include "software_cuda.h"

namespace software_cuda {
namespace {

// The 64 bits of a barrier in shared memory.
struct BarrierWord {
  uint16_t arrivals;  // of a phase
  uint16_t left : 15;
  uint16_t phase : 1;
  int32_t bytes;  // that were announced and have not come

  static BarrierWord Of(const uint64_t* barrier) {
    BarrierWord word;
    std::memcpy(&word, barrier, sizeof(word));
    return word;
  }
  void To(uint64_t* barrier) {
    if (left == 0 && bytes == 0) {
      phase ^= 1;
      left = arrivals & 0x7fff;
      NoteProgress();
    }
    std::memcpy(barrier, this, sizeof(*this));
  }
};
static_assert(sizeof(BarrierWord) == sizeof(uint64_t));

void Make(BulkCopy copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  NoteProgress();
  if (copy.barrier == nullptr) return;
  BarrierWord word = BarrierWord::Of(copy.barrier);
  word.bytes -= static_cast<int32_t>(copy.bytes);
  word.To(copy.barrier);
}

void CheckBulk(const void* to, const void* from, uint32_t bytes) {
  const auto all = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  if (all % 16 != 0 || bytes == 0) Misuse("a bulk copy is not of whole 16 bytes");
}

}  // namespace

bool MakeCopies(Block& block) {
  bool made = false;
  for (size_t i = 0; i < block.copies.size();) {
    if (Draw() % 2 == 0) {
      ++i;
      continue;
    }
    std::swap(block.copies[i], block.copies.back());
    const BulkCopy copy = block.copies.back();
    block.copies.pop_back();
    Make(copy);
    made = true;
  }
  return made;
}

void CheckBulkStoresDone(const Thread& thread) {
  for (const BulkCopy& copy : thread.block->copies) {
    if (copy.barrier == nullptr && copy.thread == &thread)
      Misuse("a thread ends before its bulk stores have read shared memory");
  }
}

void StartBulkLoad(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  Thread& thread = Self();
  CheckBulk(to, from, bytes);
  if (!thread.block->HasShared(to, bytes)) Misuse("a bulk load passes the end of shared memory");
  thread.block->copies.push_back({to, from, bytes, barrier, &thread, 0});
}

void StartBulkStore(void* to, const void* from, uint32_t bytes) {
  Thread& thread = Self();
  CheckBulk(to, from, bytes);
  if (!thread.block->HasShared(from, bytes)) Misuse("a bulk store passes the end of shared memory");
  thread.block->copies.push_back({to, from, bytes, nullptr, &thread, thread.bulk_groups});
}

void CommitBulkStores() { ++Self().bulk_groups; }

void WaitBulkStores(uint32_t groups_left) {
  Thread& thread = Self();
  std::vector<BulkCopy>& copies = thread.block->copies;
  for (size_t i = 0; i < copies.size();) {
    if (copies[i].barrier != nullptr || copies[i].thread != &thread ||
        copies[i].group + groups_left >= thread.bulk_groups) {
      ++i;
      continue;
    }
    const BulkCopy copy = copies[i];
    copies.erase(copies.begin() + static_cast<ptrdiff_t>(i));
    Make(copy);
  }
}

void InitBarrier(uint64_t* barrier, uint32_t arrivals) {
  BarrierWord word = {};
  word.arrivals = static_cast<uint16_t>(arrivals);
  word.left = static_cast<uint16_t>(arrivals & 0x7fff);
  std::memcpy(barrier, &word, sizeof(word));
}

void ArriveAtBarrier(uint64_t* barrier, int64_t expected_bytes) {
  BarrierWord word = BarrierWord::Of(barrier);
  if (word.left == 0) Misuse("more threads arrive at a barrier than it waits for");
  word.bytes += static_cast<int32_t>(expected_bytes);
  --word.left;
  word.To(barrier);
}

bool BarrierPassed(const uint64_t* barrier, uint32_t parity) {
  return BarrierWord::Of(barrier).phase != parity;
}

}  // namespace software_cuda
