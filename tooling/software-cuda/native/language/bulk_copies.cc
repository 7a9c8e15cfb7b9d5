// Bulk copies, and the barriers in shared memory that tell of them.
#include <algorithm>
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
  void To(uint64_t* barrier, Gathering* gathering) {
    if (left == 0 && bytes == 0) {
      if (gathering != nullptr) gathering->Complete();
      phase ^= 1;
      left = arrivals & 0x7fff;
      NoteProgress();
    }
    std::memcpy(barrier, this, sizeof(*this));
  }
};
static_assert(sizeof(BarrierWord) == sizeof(uint64_t));

void Make(Block& block, const BulkCopy& copy) {
  std::memcpy(copy.to, copy.read.empty() ? copy.from : copy.read.data(), copy.bytes);
  NoteProgress();
  if (copy.barrier == nullptr) return;
  BarrierWord word = BarrierWord::Of(copy.barrier);
  word.bytes -= static_cast<int32_t>(copy.bytes);
  Gathering* const gathering = block.At(copy.barrier);
  if (gathering != nullptr) gathering->AddCopy(block, copy.user);
  word.To(copy.barrier, gathering);
}

void CheckBulk(const void* to, const void* from, const void* global, uint32_t bytes) {
  const auto all = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  if (all % 16 != 0 || bytes == 0) Misuse("a bulk copy is not of whole 16 bytes");
  Allocation allocation;
  if (!FindAllocation(global, bytes, &allocation)) Misuse("a bulk copy of no memory");
}

// What is looked for in hazards.
void NoteUse(const Thread& thread, const uint64_t* barrier, Uses::Kind kind, const void* where) {
  if (thread.block->uses == nullptr) return;
  thread.block->uses->Add(thread, thread.block->OffsetOf(barrier), sizeof(*barrier), kind, where);
}

User NoteCopy(const Thread& thread, const void* copier, const void* shared, uint32_t bytes,
              Uses::Kind kind, const void* where) {
  if (thread.block->uses == nullptr) return {};
  return thread.block->uses->AddCopy(thread, copier, thread.block->OffsetOf(shared), bytes, kind,
                                     where);
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
    const BulkCopy copy = std::move(block.copies.back());
    block.copies.pop_back();
    Make(block, copy);
    made = true;
  }
  return made;
}

void MakeLastCopies(Block& block) {
  for (const BulkCopy& copy : block.copies) {
    if (copy.barrier != nullptr) Misuse("a block ends before its bulk loads have come");
    Make(block, copy);
  }
}

void CheckBulkStoresDone(const Thread& thread) {
  if (thread.stored_until > thread.waited_until)
    Misuse("a thread ends before its bulk stores have read shared memory");
}

void StartBulkLoad(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  Thread& thread = Self();
  CheckBulk(to, from, from, bytes);
  if (!thread.block->HasShared(to, bytes)) Misuse("a bulk load passes the end of shared memory");
  const void* const where = __builtin_return_address(0);
  NoteUse(thread, barrier, Uses::Kind::kAtomicRead, where);
  const User copy = NoteCopy(thread, barrier, to, bytes, Uses::Kind::kWrite, where);
  thread.block->copies.push_back({to, from, bytes, barrier, {}, &thread, 0, copy});
}

void StartBulkStore(void* to, const void* from, uint32_t bytes) {
  Thread& thread = Self();
  CheckBulk(to, from, to, bytes);
  if (!thread.block->HasShared(from, bytes)) Misuse("a bulk store passes the end of shared memory");
  const User copy =
      NoteCopy(thread, &thread.stores, from, bytes, Uses::Kind::kRead, __builtin_return_address(0));
  thread.stores.emplace_back(thread.bulk_groups, copy);
  thread.block->copies.push_back({to, from, bytes, nullptr, {}, &thread, thread.bulk_groups, copy});
  thread.stored_until = thread.bulk_groups + 1;
}

void CommitBulkStores() { ++Self().bulk_groups; }

void WaitBulkStores(uint32_t groups_left, bool read) {
  Thread& thread = Self();
  const uint32_t done = thread.bulk_groups > groups_left ? thread.bulk_groups - groups_left : 0;
  thread.waited_until = std::max(thread.waited_until, done);
  std::erase_if(thread.stores, [&](const auto& store) {
    if (store.first >= done) return false;
    KnowCopy(thread, store.second);
    return true;
  });
  std::vector<BulkCopy>& copies = thread.block->copies;
  for (size_t i = 0; i < copies.size();) {
    BulkCopy& copy = copies[i];
    if (copy.barrier != nullptr || copy.thread != &thread || copy.group >= done) {
      ++i;
    } else if (read) {
      const auto* const from = static_cast<const uint8_t*>(copy.from);
      if (copy.read.empty()) copy.read.assign(from, from + copy.bytes);
      ++i;
    } else {
      const BulkCopy made = std::move(copy);
      copies.erase(copies.begin() + static_cast<ptrdiff_t>(i));
      Make(*thread.block, made);
    }
  }
}

void InitBarrier(uint64_t* barrier, uint32_t arrivals) {
  BarrierWord word = {};
  if (arrivals == 0 || arrivals > 0x7fff) Misuse("a barrier of no, or too many, arrivals");
  word.arrivals = static_cast<uint16_t>(arrivals);
  word.left = static_cast<uint16_t>(arrivals & 0x7fff);
  std::memcpy(barrier, &word, sizeof(word));
  Thread& thread = Self();
  NoteUse(thread, barrier, Uses::Kind::kWrite, __builtin_return_address(0));
  thread.block->at_barriers.erase(barrier);
}

void ArriveAtBarrier(uint64_t* barrier, int64_t expected_bytes) {
  BarrierWord word = BarrierWord::Of(barrier);
  if (word.left == 0) Misuse("more threads arrive at a barrier than it waits for");
  word.bytes += static_cast<int32_t>(expected_bytes);
  --word.left;
  Thread& thread = Self();
  NoteUse(thread, barrier, Uses::Kind::kAtomic, __builtin_return_address(0));
  Gathering* const gathering = thread.block->At(barrier);
  if (gathering != nullptr) gathering->Add(thread);
  word.To(barrier, gathering);
}

bool TryBarrier(const uint64_t* barrier, uint32_t parity) {
  Thread& thread = Self();
  NoteUse(thread, barrier, Uses::Kind::kAtomicRead, __builtin_return_address(0));
  if (BarrierWord::Of(barrier).phase == parity) {
    // Changes with every arrival and every phase.
    const auto* const changing = reinterpret_cast<const uint32_t*>(barrier);
    WaitForOther(changing, *changing);
    if (BarrierWord::Of(barrier).phase == parity) return false;
  }
  if (const Gathering* const gathering = thread.block->At(barrier))
    gathering->Teach(thread, /*added=*/false);
  return true;
}

void StartWord(void* to, const void* from) {
  Thread& thread = Self();
  constexpr uint32_t kBytes = 4;
  if (!thread.block->HasShared(to, kBytes)) Misuse("a copy passes the end of shared memory");
  thread.words =
      NoteCopy(thread, thread.warp, to, kBytes, Uses::Kind::kWrite, __builtin_return_address(0));
  std::memcpy(to, from, kBytes);
}

void WaitWords() {
  Thread& thread = Self();
  if (thread.words.time != 0) KnowCopy(thread, thread.words);
}

}  // namespace software_cuda
