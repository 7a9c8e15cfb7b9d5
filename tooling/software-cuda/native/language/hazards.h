// Hazards of shared memory: two threads of a block use a byte, one of them writes, and nothing
// orders the two. Every thread has a clock and knows of the others' up to where they last met;
// every byte remembers who used it last, and when.
//
// The compiler reports what kernels read and write, as it does for a sanitizer of threads
// (-fsanitize=thread, but without that sanitizer's library). Where no kernel was built so nothing
// of this is done.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

namespace software_cuda {

struct Block;
struct Thread;

// What goes on beside the threads of a block, and has clocks of its own.
enum class Beside { kBulkLoads, kBulkStores, kWords, kCount };

bool LooksForHazards();

// By a thread's number in its block; behind them come the clocks of what goes on beside them.
using Times = std::vector<uint32_t>;

struct Knowledge {
  std::shared_ptr<const Times> times;  // shared by all who met; null: nothing
  uint32_t now = 1;  // the thread's own clock, which goes on wherever others may learn of it
};

// Where threads leave what they know for those who come after.
class Gathering {
 public:
  void Add(Thread& thread);
  void AddCopy(const Block& block, Beside beside, uint32_t time);
  // All who wait for it may learn what was left so far.
  void Complete();
  // `added`: what the thread itself knew is in it.
  void Teach(Thread& thread, bool added) const;

 private:
  Times& Open(const Block& block);

  std::unique_ptr<Times> open_;
  std::shared_ptr<const Times> merged_;  // went into it last
  std::shared_ptr<const Times> complete_;
};

// The last uses of the bytes of a block's shared memory.
class Uses {
 public:
  explicit Uses(uint64_t bytes);

  enum class Kind { kRead, kWrite, kAtomic };
  // Misuse where it is a hazard. `where`: the code's address.
  void Add(const Thread& thread, uint64_t offset, uint64_t bytes, Kind kind, const void* where);
  // The same by a copy that the thread starts; its time.
  uint32_t AddCopy(const Thread& thread, Beside beside, uint64_t offset, uint64_t bytes, Kind kind);
  uint64_t bytes() const { return bytes_; }

 private:
  struct Byte;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct User {
    uint32_t number;
    uint32_t time;
  };
  void Add(const Thread& starter, User user, uint64_t offset, uint64_t bytes, Kind kind,
           const void* where);

  const uint64_t bytes_;
  std::unique_ptr<Byte[], Free> uses_;
  uint32_t clocks_[static_cast<int>(Beside::kCount)] = {};
};

// The thread has waited for copies up to a time.
void KnowCopies(Thread& thread, Beside beside, uint32_t time);

}  // namespace software_cuda
