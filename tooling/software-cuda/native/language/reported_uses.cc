// What the compiler calls where it reports uses of memory.
#include <atomic>
#include <cstdint>

#include "grid_state.h"
#include "hazards.h"
#include "software_cuda.h"

namespace {

using software_cuda::Uses;

std::atomic<bool> some_report = false;

// Most of it is other memory than the block's.
void Note(const volatile void* pointer, uint64_t bytes, Uses::Kind kind, const void* where) {
  const software_cuda::Thread* const thread = software_cuda::running_thread;
  if (thread == nullptr || thread->block->uses == nullptr) return;
  Uses& uses = *thread->block->uses;
  const auto offset =
      static_cast<uint64_t>(static_cast<const volatile uint8_t*>(pointer) - thread->block->shared);
  if (offset >= uses.bytes()) return;
  if (bytes > uses.bytes() - offset)
    software_cuda::Misuse("a kernel passes the end of its shared memory");
  uses.Add(*thread, offset, bytes, kind, where);
}

}  // namespace

bool software_cuda::LooksForHazards() { return some_report; }

#define NOTE(pointer, bytes, kind) \
  Note(pointer, bytes, Uses::Kind::kind, __builtin_return_address(0))

extern "C" {

#define PLAIN(bytes)                                                        \
  void __tsan_read##bytes(void* at) { NOTE(at, bytes, kRead); }             \
  void __tsan_write##bytes(void* at) { NOTE(at, bytes, kWrite); }           \
  void __tsan_unaligned_read##bytes(void* at) { NOTE(at, bytes, kRead); }   \
  void __tsan_unaligned_write##bytes(void* at) { NOTE(at, bytes, kWrite); } \
  void __tsan_volatile_read##bytes(void* at) { NOTE(at, bytes, kRead); }    \
  void __tsan_volatile_write##bytes(void* at) { NOTE(at, bytes, kWrite); }
PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

void __tsan_read_range(void* at, size_t bytes) { NOTE(at, bytes, kRead); }
void __tsan_write_range(void* at, size_t bytes) { NOTE(at, bytes, kWrite); }
// Of each addon that reports, when it is loaded.
void __tsan_init() { some_report = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define CHANGE(bits, name)                                                       \
  uint##bits##_t __tsan_atomic##bits##_fetch_##name(volatile uint##bits##_t* at, \
                                                    uint##bits##_t value, int) { \
    NOTE(at, bits / 8, kAtomic);                                                 \
    return __atomic_fetch_##name(at, value, __ATOMIC_SEQ_CST);                   \
  }
#define ATOMIC(bits)                                                                               \
  uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* at, int) {              \
    NOTE(at, bits / 8, kAtomicRead);                                                               \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile uint##bits##_t* at, uint##bits##_t value, int) {       \
    NOTE(at, bits / 8, kAtomic);                                                                   \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                                \
  uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* at, uint##bits##_t value, \
                                                int) {                                             \
    NOTE(at, bits / 8, kAtomic);                                                                   \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(                                               \
      volatile uint##bits##_t* at, uint##bits##_t* seen, uint##bits##_t value, int, int) {         \
    NOTE(at, bits / 8, kAtomic);                                                                   \
    return __atomic_compare_exchange_n(at, seen, value, false, __ATOMIC_SEQ_CST,                   \
                                       __ATOMIC_SEQ_CST);                                          \
  }                                                                                                \
  uint##bits##_t __tsan_atomic##bits##_compare_exchange_val(                                       \
      volatile uint##bits##_t* at, uint##bits##_t seen, uint##bits##_t value, int, int) {          \
    NOTE(at, bits / 8, kAtomic);                                                                   \
    __atomic_compare_exchange_n(at, &seen, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
    return seen;                                                                                   \
  }                                                                                                \
  CHANGE(bits, add) CHANGE(bits, sub) CHANGE(bits, and) CHANGE(bits, or) CHANGE(bits, xor)
ATOMIC(8)
ATOMIC(16)
ATOMIC(32)
ATOMIC(64)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"
