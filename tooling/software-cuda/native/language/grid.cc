// The threads of a grid as fibers, and whose turn it is.

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "grid_state.h"
#include "software_cuda.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if !defined(__x86_64__)
#error "fibers are switched in the assembly of x86-64"
#endif

// Keeps what a call keeps, and goes on where the other stack left off.
extern "C" void software_cuda_switch(void** save, void* load);
asm(R"(
.text
.globl software_cuda_switch
.hidden software_cuda_switch
.type software_cuda_switch, @function
software_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size software_cuda_switch, .-software_cuda_switch
)");

namespace software_cuda {

thread_local Thread* running_thread = nullptr;

namespace {

constexpr uint64_t kStackBytes = uint64_t{64} << 10;
constexpr uint64_t kCanary = 0x5afe57ac5afe57ac;
constexpr uint64_t kMostShared = uint64_t{227} << 10;
constexpr uint64_t kAlignment = 1024;
constexpr int kResidentThreads = kMultiprocessors * 2048;

thread_local void* scheduler_stack = nullptr;
thread_local uint64_t progress = 0;

// Stacks of a stream's thread, kept from launch to launch.
struct Stacks {
  uint8_t* base = nullptr;
  ~Stacks() {
    if (base != nullptr) munmap(base, kStackBytes * kResidentThreads);
  }
  uint8_t* Of(size_t number) {
    if (base == nullptr) {
      void* const made = mmap(nullptr, kStackBytes * kResidentThreads, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (made == MAP_FAILED) Misuse("no memory for the stacks of a grid");
      madvise(made, kStackBytes * kResidentThreads, MADV_NOHUGEPAGE);
      base = static_cast<uint8_t*>(made);
    }
    return base + number * kStackBytes;
  }
};
thread_local Stacks stacks;

uint64_t ReadSeed() {
  const char* const seed = std::getenv("MOE_EP_SOFTWARE_SEED");
  return seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
}
// Read when the library is loaded, for the environment may change later.
const uint64_t first_seed = ReadSeed();
std::atomic<uint64_t> drawing_threads = 0;
thread_local uint64_t lot =
    (first_seed * 0x9e3779b97f4a7c15 + ++drawing_threads * 0xbf58476d1ce4e5b9) | 1;

void Suspend() {
  Thread& thread = *running_thread;
  // Deeper than this a thread would write into the stack of the next.
  const auto depth = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) -
                     reinterpret_cast<uintptr_t>(stacks.Of(0));
  if (depth % kStackBytes < 2048) Misuse("a kernel takes more stack than there is");
  software_cuda_switch(&thread.stack_pointer, scheduler_stack);
}

// Where a fiber begins.
void RunThread() {
  Thread& thread = *running_thread;
  Block& block = *thread.block;
  (*block.grid->body)();
  thread.ended = true;
  ++progress;
  CheckBulkStoresDone(thread);
  LeaveBarriers(thread);
  Suspend();
  Misuse("a thread that has ended runs on");
}

void Prepare(Thread& thread, size_t number) {
  uint8_t* const stack = stacks.Of(number);
#if defined(__SANITIZE_ADDRESS__)
  // The thread that had it before never returned from its functions.
  ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);
#endif
  std::memcpy(stack, &kCanary, sizeof(kCanary));
  auto* top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // nobody to return to
  *--top = reinterpret_cast<void*>(RunThread);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
}

std::unique_ptr<Block> NewBlock(Grid& grid, uint64_t number, size_t first_stack) {
  auto block = std::make_unique<Block>();
  block->grid = &grid;
  block->index = {static_cast<unsigned>(number % grid.blocks.x),
                  static_cast<unsigned>(number / grid.blocks.x % grid.blocks.y),
                  static_cast<unsigned>(number / grid.blocks.x / grid.blocks.y)};
  const uint64_t bytes = StaticsOf(grid) + kStaticBytes + 2 * kAlignment;
  block->memory = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  std::memset(block->memory.get(), 0xa5, bytes);
  const auto begin = reinterpret_cast<uintptr_t>(block->memory.get());
  block->shared = block->memory.get() + (kAlignment - begin % kAlignment);
  if (LooksForHazards()) block->uses = std::make_unique<Uses>(StaticsOf(grid) + kStaticBytes);
  const unsigned count = grid.block.x * grid.block.y * grid.block.z;
  block->threads.resize(count);
  block->warps = std::vector<Warp>((count + kWarp - 1) / kWarp);
  block->first_stack = first_stack;
  block->alive = static_cast<int>(count);
  grid.alive += static_cast<int>(count);
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block->threads[i];
    thread.index = {i % grid.block.x, i / grid.block.x % grid.block.y,
                    i / grid.block.x / grid.block.y};
    thread.lane = static_cast<int>(i % kWarp);
    thread.warp = &block->warps[i / kWarp];
    thread.warp->lanes |= 1u << thread.lane;
    thread.block = block.get();
    Prepare(thread, first_stack + i);
  }
  return block;
}

bool MayRun(const Thread& thread) {
  return !thread.ended && (thread.wait_on == nullptr || *thread.wait_on != thread.wait_value);
}

void Resume(Thread& thread) {
  thread.wait_on = nullptr;
  running_thread = &thread;
  software_cuda_switch(&scheduler_stack, thread.stack_pointer);
  running_thread = nullptr;
}

// One turn for whoever may run, warps and lanes in an order of the moment. Whether there was one.
bool TakeTurns(Block& block) {
  bool ran = false;
  const size_t warps = block.warps.size();
  const size_t first = Draw() % warps;
  for (size_t w = 0; w < warps; ++w) {
    const size_t begin = (first + w) % warps * kWarp;
    const size_t lanes = std::min<size_t>(kWarp, block.threads.size() - begin);
    const uint32_t turn = Draw();
    for (size_t i = 0; i < lanes; ++i) {
      const size_t lane = (turn & 1) != 0 ? i : lanes - 1 - i;
      Thread& thread = block.threads[begin + (lane + (turn >> 1) % lanes) % lanes];
      if (!MayRun(thread)) continue;
      ran = true;
      Resume(thread);
    }
  }
  return ran;
}

void CheckStacks(const Block& block) {
  for (size_t i = 0; i < block.threads.size(); ++i) {
    if (std::memcmp(stacks.Of(block.first_stack + i), &kCanary, sizeof(kCanary)) != 0)
      Misuse("a kernel takes more stack than there is");
  }
}

}  // namespace

uint32_t Draw() {
  lot ^= lot << 13;
  lot ^= lot >> 7;
  lot ^= lot << 17;
  return static_cast<uint32_t>(lot >> 16);
}

Thread& Self() {
  if (running_thread == nullptr) Misuse("device code runs outside of a kernel");
  return *running_thread;
}

void NoteProgress() { ++progress; }

void WaitForOther(const uint32_t* number, uint32_t value) {
  running_thread->wait_on = number;
  running_thread->wait_value = value;
  Suspend();
}

void Yield() { Suspend(); }

void MaybeYield() {
  if (Draw() % 4 == 0) Suspend();
}

uint3 BlockIndex() { return Self().block->index; }
uint3 BlockDim() { return Self().block->grid->block; }
uint3 GridDim() { return Self().block->grid->blocks; }

void RunGrid(dim3 blocks, dim3 block, uint64_t dynamic_bytes, const std::function<void()>& body) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t count = uint64_t{blocks.x} * blocks.y * blocks.z;
  if (threads == 0 || threads > 1024 || count == 0 || dynamic_bytes > kMostShared)
    Misuse("a grid that no device has");
  Grid grid = {.blocks = blocks, .block = block, .dynamic_bytes = dynamic_bytes, .body = &body};
  const uint64_t most = std::min<uint64_t>(count, kResidentThreads / threads);
  std::vector<size_t> free_stacks;
  for (uint64_t i = most; i > 0; --i) free_stacks.push_back((i - 1) * threads);
  uint64_t next = 0;
  int idle_rounds = 0;
  while (next < count || !grid.resident.empty()) {
    while (next < count && !free_stacks.empty()) {
      grid.resident.push_back(NewBlock(grid, next++, free_stacks.back()));
      free_stacks.pop_back();
    }
    const uint64_t before = progress;
    bool ran = false;
    const size_t first = grid.resident.empty() ? 0 : Draw() % grid.resident.size();
    for (size_t i = 0; i < grid.resident.size(); ++i) {
      if (grid.resident.size() > 1 && Draw() % 8 == 0) {
        ran = true;  // another time
        continue;
      }
      Block& resident = *grid.resident[(first + i) % grid.resident.size()];
      ran |= MakeCopies(resident);
      ran |= TakeTurns(resident);
    }
    bool ended = false;
    std::erase_if(grid.resident, [&](const std::unique_ptr<Block>& resident) {
      if (resident->alive > 0) return false;
      MakeLastCopies(*resident);
      CheckStacks(*resident);
      free_stacks.push_back(resident->first_stack);
      ended = true;
      return true;
    });
    const bool waits_for_copies =
        std::any_of(grid.resident.begin(), grid.resident.end(),
                    [](const auto& resident) { return !resident->copies.empty(); });
    if (!ran && !ended && !waits_for_copies)
      Misuse("the threads of a grid wait for one another for ever");
    // They look for what other streams write.
    idle_rounds = progress == before ? idle_rounds + 1 : 0;
    if (idle_rounds > 64) {
      std::this_thread::sleep_for(std::chrono::microseconds(30));
    } else if (idle_rounds > 0) {
      sched_yield();
    }
  }
}

}  // namespace software_cuda
