// Signals: 64-bit monotone words in memory that peers share, with sleeping that costs the writer
// nothing while nobody sleeps.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace moe_ep {

// One cache line a signal: neighbours have different writers.
struct alignas(64) SignalCell {
  std::atomic<uint64_t> value;
  std::atomic<uint32_t> sleepers;
};
static_assert(sizeof(SignalCell) == 64);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// Waiting slices: a sleeper looks at the abort word at least this often.
inline constexpr int64_t kSleepSliceNanoseconds = 10'000'000;

inline int64_t MonotonicNanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

inline void CpuRelax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The futex is the low half of the value; not private, since sleepers may be in other processes.
inline uint32_t* FutexWord(SignalCell& cell) { return reinterpret_cast<uint32_t*>(&cell.value); }

inline void WakeSleepers(SignalCell& cell) {
  // Orders the store of the value before the look at the sleepers; the sleeper does the same the
  // other way round.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (cell.sleepers.load(std::memory_order_relaxed) != 0) {
    syscall(SYS_futex, FutexWord(cell), FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
  }
}

// All earlier writes of this thread are visible to who sees the new value.
inline void StoreSignal(SignalCell& cell, uint64_t value) {
  cell.value.store(value, std::memory_order_release);
  WakeSleepers(cell);
}

inline uint64_t AddSignal(SignalCell& cell, int64_t delta) {
  const uint64_t before =
      cell.value.fetch_add(static_cast<uint64_t>(delta), std::memory_order_acq_rel);
  WakeSleepers(cell);
  return before;
}

// Sleeps until the value is no longer `seen`, for one slice at most.
inline void SleepOnSignal(SignalCell& cell, uint64_t seen) {
  cell.sleepers.fetch_add(1, std::memory_order_seq_cst);
  if (cell.value.load(std::memory_order_seq_cst) == seen) {
    const timespec slice = {0, kSleepSliceNanoseconds};
    syscall(SYS_futex, FutexWord(cell), FUTEX_WAIT, static_cast<uint32_t>(seen), &slice, nullptr,
            0);
  }
  cell.sleepers.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace moe_ep
