#include "hazards.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "grid_state.h"
#include "software_cuda.h"

namespace software_cuda {
namespace {

uint32_t NumberOf(const Thread& thread) {
  return static_cast<uint32_t>(&thread - thread.block->threads.data());
}
size_t ClocksOf(const Block& block) { return block.threads.size() + kCopiers; }

void Merge(const Times& from, Times* to) {
  for (size_t i = 0; i < from.size(); ++i) (*to)[i] = std::max((*to)[i], from[i]);
}

// Addresses are kept by their lower halves: all code of an addon has the same upper one.
uint32_t LowerHalf(const void* where) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(where));
}
std::string TextOf(uint32_t where, const void* upper_half) {
  const uintptr_t upper = reinterpret_cast<uintptr_t>(upper_half) & ~uintptr_t{0xffffffff};
  // In the call, and not behind it.
  const auto* const address = reinterpret_cast<const char*>(upper | where) - 1;
  Dl_info info;
  if (dladdr(address, &info) == 0) return "nowhere";
  const std::string file = info.dli_fname;
  char text[32];
  std::snprintf(text, sizeof(text), "+0x%zx",
                static_cast<size_t>(address - static_cast<const char*>(info.dli_fbase)));
  return file.substr(file.rfind('/') + 1) + text;
}

}  // namespace

Times& Gathering::Open(const Block& block) {
  if (open_ == nullptr) open_ = std::make_unique<Times>(ClocksOf(block));
  return *open_;
}

void Gathering::Add(Thread& thread) {
  if (thread.block->uses == nullptr) return;
  Times& times = Open(*thread.block);
  Knowledge& knowledge = thread.knowledge;
  if (knowledge.times != nullptr && knowledge.times != merged_) {
    Merge(*knowledge.times, &times);
    merged_ = knowledge.times;
  }
  times[NumberOf(thread)] = knowledge.now++;
}

void Gathering::AddCopy(const Block& block, User copy) {
  uint32_t& known = Open(block)[copy.number];
  known = std::max(known, copy.time);
}

void Gathering::Complete() {
  if (open_ == nullptr) return;
  if (complete_ != nullptr) Merge(*complete_, open_.get());
  complete_ = std::move(open_);
  merged_ = nullptr;
}

void Gathering::Teach(Thread& thread, bool added) const {
  Knowledge& knowledge = thread.knowledge;
  if (complete_ == nullptr || knowledge.times == complete_) return;
  if (added || knowledge.times == nullptr) {
    knowledge.times = complete_;
    return;
  }
  auto both = std::make_shared<Times>(*complete_);
  Merge(*knowledge.times, both.get());
  knowledge.times = std::move(both);
}

void KnowCopy(Thread& thread, User copy) {
  const Block& block = *thread.block;
  if (block.uses == nullptr) return;
  std::shared_ptr<const Times>& times = thread.knowledge.times;
  if (times != nullptr && (*times)[copy.number] >= copy.time) return;
  auto more =
      times == nullptr ? std::make_shared<Times>(ClocksOf(block)) : std::make_shared<Times>(*times);
  (*more)[copy.number] = copy.time;
  times = std::move(more);
}

struct Uses::Byte {
  struct Use {
    uint32_t time;  // 0: none
    uint32_t where;
    uint16_t number;
    bool atomic;
  };
  Use write;
  // Since then; of more than these it forgets some.
  Use atomic;
  Use reads[2];
};

void Uses::Unmap::operator()(void* memory) const { munmap(memory, bytes); }

// Pages that nobody uses take no memory.
Uses::Uses(uint64_t bytes) : bytes_(bytes), uses_(nullptr, Unmap{bytes * sizeof(Byte)}) {
  void* const made = mmap(nullptr, bytes * sizeof(Byte), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) Misuse("no memory to look for hazards");
  uses_.reset(static_cast<Byte*>(made));
}

void Uses::Add(const Thread& thread, uint64_t offset, uint64_t bytes, Kind kind,
               const void* where) {
  Add(thread, {NumberOf(thread), thread.knowledge.now}, offset, bytes, kind, where);
}

User Uses::AddCopy(const Thread& thread, const void* copier, uint64_t offset, uint64_t bytes,
                   Kind kind, const void* where) {
  const auto clock = copiers_.emplace(copier, static_cast<uint32_t>(copiers_.size())).first->second;
  if (clock >= kCopiers) Misuse("more copiers than hazards are looked for with");
  const auto number = static_cast<uint32_t>(thread.block->threads.size()) + clock;
  const User copy = {number, ++clocks_[clock]};
  Add(thread, copy, offset, bytes, kind, where);
  return copy;
}

void Uses::Add(const Thread& starter, User user, uint64_t offset, uint64_t bytes, Kind kind,
               const void* where) {
  const Times* const known = starter.knowledge.times.get();
  const uint32_t self = NumberOf(starter);
  const auto comes_before = [&](const Byte::Use& use) {
    return use.time == 0 || use.number == self ||
           (known != nullptr && (*known)[use.number] >= use.time);
  };
  const auto name_of = [&](uint32_t number, uint32_t address) {
    const size_t threads = starter.block->threads.size();
    const bool copied = number >= threads;
    return std::string(copied ? "a copy" : "thread " + std::to_string(number)) + " at " +
           TextOf(address, where);
  };
  const auto check = [&](const Byte::Use& use, const char* what, uint64_t at) {
    if (comes_before(use)) return;
    static std::mutex mutex;
    static auto* const told = new std::set<std::pair<uint32_t, uint32_t>>;
    static const bool goes_on = std::getenv("MOE_EP_SOFTWARE_HAZARDS_GO_ON") != nullptr;
    std::lock_guard lock(mutex);
    if (!told->emplace(use.where, LowerHalf(where)).second) return;
    const std::string text = std::string("a hazard in shared memory, ") + what + ": " +
                             name_of(user.number, LowerHalf(where)) + ", before it " +
                             name_of(use.number, use.where) + ", byte " + std::to_string(at);
    if (!goes_on) Misuse(text);
    std::fprintf(stderr, "software cuda: %s\n", text.c_str());
  };
  const bool reads = kind == Kind::kRead || kind == Kind::kAtomicRead;
  const bool atomic = kind == Kind::kAtomic || kind == Kind::kAtomicRead;
  const Byte::Use use = {user.time, LowerHalf(where), static_cast<uint16_t>(user.number), atomic};
  for (uint64_t at = offset; at < offset + bytes; ++at) {
    Byte& byte = uses_[at];
    check(byte.write, reads ? "read after write" : "write after write", at);
    if (!atomic) check(byte.atomic, reads ? "read after atomic" : "write after atomic", at);
    if (reads) {
      Byte::Use* place = &byte.reads[user.time % 2];
      for (Byte::Use& read : byte.reads) {
        if (read.number == use.number || comes_before(read)) place = &read;
      }
      *place = use;
      continue;
    }
    for (const Byte::Use& read : byte.reads) {
      if (!atomic || !read.atomic)
        check(read, atomic ? "atomic after read" : "write after read", at);
    }
    if (atomic) {
      if (comes_before(byte.atomic) || user.time % 2 == 0) byte.atomic = use;
    } else {
      byte = {use, {}, {}};
    }
  }
}

}  // namespace software_cuda
