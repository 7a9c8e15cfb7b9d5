// Hazards of shared memory: two threads of a block use a byte, one of them writes, and nothing
// orders the two. Every thread has a clock and knows of the others' up to where they last met;
// every byte remembers who used it last, and when.
//
// The compiler reports what kernels read and write, as it does for a sanitizer of threads
// (-fsanitize=thread, but without that sanitizer's library). Where no kernel was built so nothing
// of this is done.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace software_cuda {

struct Block;
struct Thread;

bool LooksForHazards();

// By a thread's number in its block. Behind them come the clocks of what goes on beside threads:
// the bulk loads that tell one barrier, the bulk stores of a thread, the words that lanes of a warp
// copy.
using Times = std::vector<uint32_t>;
inline constexpr uint32_t kCopiers = 512;

struct Knowledge {
  std::shared_ptr<const Times> times;  // shared by all who met; null: nothing
  uint32_t now = 1;  // the thread's own clock, which goes on wherever others may learn of it
};

// Who uses a byte, and when.
struct User {
  uint32_t number;
  uint32_t time;
};

// Where threads leave what they know for those who come after.
class Gathering {
 public:
  void Add(Thread& thread);
  void AddCopy(const Block& block, User copy);
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

  enum class Kind { kRead, kAtomicRead, kAtomic, kWrite };
  // Misuse where it is a hazard. `where`: the address that the code goes on at.
  void Add(const Thread& thread, uint64_t offset, uint64_t bytes, Kind kind, const void* where);
  // The same by a copy that the thread starts. `copier`: whose clock it has.
  User AddCopy(const Thread& thread, const void* copier, uint64_t offset, uint64_t bytes, Kind kind,
               const void* where);
  uint64_t bytes() const { return bytes_; }

 private:
  struct Byte;
  struct Unmap {
    uint64_t bytes;
    void operator()(void* memory) const;
  };
  void Add(const Thread& starter, User user, uint64_t offset, uint64_t bytes, Kind kind,
           const void* where);

  const uint64_t bytes_;
  std::unique_ptr<Byte[], Unmap> uses_;
  std::map<const void*, uint32_t> copiers_;  // their numbers
  uint32_t clocks_[kCopiers] = {};
};

// The thread has waited for a copy.
void KnowCopy(Thread& thread, User copy);

}  // namespace software_cuda
