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
  if (gathering != nullptr) gathering->AddCopy(block, Beside::kBulkLoads, copy.time);
  word.To(copy.barrier, gathering);
}

void CheckBulk(const void* to, const void* from, const void* global, uint32_t bytes) {
  const auto all = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  if (all % 16 != 0 || bytes == 0) Misuse("a bulk copy is not of whole 16 bytes");
  Allocation allocation;
  if (!FindAllocation(global, bytes, &allocation)) Misuse("a bulk copy of no memory");
}

}  // namespace

uint32_t NoteCopy(const Thread& thread, Beside beside, const void* shared, uint32_t bytes,
                  Uses::Kind kind) {
  if (thread.block->uses == nullptr) return 0;
  const auto offset =
      static_cast<uint64_t>(static_cast<const uint8_t*>(shared) - thread.block->shared);
  return thread.block->uses->AddCopy(thread, beside, offset, bytes, kind);
}

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
  const uint32_t time = NoteCopy(thread, Beside::kBulkLoads, to, bytes, Uses::Kind::kWrite);
  thread.block->copies.push_back({to, from, bytes, barrier, {}, &thread, 0, time});
}

void StartBulkStore(void* to, const void* from, uint32_t bytes) {
  Thread& thread = Self();
  CheckBulk(to, from, to, bytes);
  if (!thread.block->HasShared(from, bytes)) Misuse("a bulk store passes the end of shared memory");
  const uint32_t time = NoteCopy(thread, Beside::kBulkStores, from, bytes, Uses::Kind::kRead);
  thread.stores.emplace_back(thread.bulk_groups, time);
  thread.block->copies.push_back({to, from, bytes, nullptr, {}, &thread, thread.bulk_groups, time});
  thread.stored_until = thread.bulk_groups + 1;
}

void CommitBulkStores() { ++Self().bulk_groups; }

void WaitBulkStores(uint32_t groups_left, bool read) {
  Thread& thread = Self();
  const uint32_t done = thread.bulk_groups > groups_left ? thread.bulk_groups - groups_left : 0;
  thread.waited_until = std::max(thread.waited_until, done);
  std::erase_if(thread.stores, [&](const auto& store) {
    if (store.first >= done) return false;
    KnowCopies(thread, Beside::kBulkStores, store.second);
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
  Self().block->at_barriers.erase(barrier);
}

void ArriveAtBarrier(uint64_t* barrier, int64_t expected_bytes) {
  BarrierWord word = BarrierWord::Of(barrier);
  if (word.left == 0) Misuse("more threads arrive at a barrier than it waits for");
  word.bytes += static_cast<int32_t>(expected_bytes);
  --word.left;
  Thread& thread = Self();
  Gathering* const gathering = thread.block->At(barrier);
  if (gathering != nullptr) gathering->Add(thread);
  word.To(barrier, gathering);
}

bool TryBarrier(const uint64_t* barrier, uint32_t parity) {
  Thread& thread = Self();
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
  thread.words = NoteCopy(thread, Beside::kWords, to, kBytes, Uses::Kind::kWrite);
  std::memcpy(to, from, kBytes);
}

void WaitWords() {
  Thread& thread = Self();
  if (thread.words != 0) KnowCopies(thread, Beside::kWords, thread.words);
}

}  // namespace software_cuda
