// What kernels of the dispatch families call for peers whose memory is mapped: addresses, signals,
// waits with deadlines, and what ends them.
//
// One thread signals, waits and reports; a block barrier before a signal makes what the block wrote
// part of it, one after a wait lets the block read what was signalled.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "moe_ep/command.h"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/transport/poison_word.h"
#include "moe_ep/transport/routes.h"

namespace moe_ep::cuda {

// A kernel argument. What it refers to is kept by the Routes that it was made of.
struct DeviceRoutes {
  uint8_t* const* bases;
  const uint32_t* host_poison;
  moe_ep_describe_failure describe_poison;
  int64_t poison_id;
  uint64_t payload_offset;
  int32_t rank;
  int32_t world_size;

  template <typename T = uint8_t>
  __device__ T* Payload(int peer, uint64_t offset) const {
    return reinterpret_cast<T*>(bases[peer] + payload_offset + offset);
  }
  __device__ uint64_t* Signal(int peer, uint64_t index) const {
    return reinterpret_cast<uint64_t*>(bases[peer] + kControlBytes + index * sizeof(SignalCell));
  }
  __device__ uint64_t* PoisonOf(int peer) const {
    return &reinterpret_cast<DeviceControl*>(bases[peer])->poison;
  }
};

inline DeviceRoutes ToDevice(const Routes& routes) {
  const moe_ep_route_table& table = routes.table();
  return {table.device_bases,   table.host_poison, table.describe_poison, table.poison_id,
          table.payload_offset, table.rank,        table.world_size};
}

__device__ __forceinline__ uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// All that this thread wrote, or saw written, before is visible to who sees the value.
__device__ __forceinline__ void StoreSignal(uint64_t* signal, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(signal), "l"(value) : "memory");
}
// The same for a number added to the value, which may be a peer's.
__device__ __forceinline__ void AddSignal(uint64_t* signal, int64_t delta) {
  asm volatile("red.release.sys.global.add.u64 [%0], %1;" ::"l"(signal), "l"(delta) : "memory");
}
__device__ __forceinline__ uint64_t LoadSignal(const uint64_t* signal) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(signal) : "memory");
  return value;
}
__device__ __forceinline__ uint32_t LoadHostWord(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

// What ends a wait, and where it is told.
struct Patience {
  const uint32_t* abort;
  moe_ep_failure_record* failure;
  int64_t timeout_ns;
};

inline Patience PatienceOf(const Exec& exec, int64_t timeout_ms) {
  constexpr int64_t kCenturyMs = int64_t{100} * 365 * 24 * 3600 * 1000;
  return {exec.abort_word(), exec.cuda_failure(),
          (timeout_ms < kCenturyMs ? timeout_ms : kCenturyMs) * 1'000'000};
}

// Whether the group was poisoned: what it takes to know is asked for when this is made, for words
// of the host are far away, and used later.
class PoisonLook {
 public:
  PoisonLook() = default;
  __device__ explicit PoisonLook(const DeviceRoutes& routes)
      : host_(LoadHostWord(routes.host_poison)) {
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];"
                 : "=l"(word_)
                 : "l"(routes.PoisonOf(routes.rank))
                 : "memory");
  }
  // False, with the stream in failure, when it was.
  __device__ bool Check(const DeviceRoutes& routes, moe_ep_failure_record* failure) const {
    if (word_ == 0 && host_ == PoisonRecord::kFine) return true;
    Fail(failure, routes.describe_poison, static_cast<int64_t>(word_), routes.rank,
         routes.poison_id);
    return false;
  }

 private:
  uint64_t word_ = 0;
  uint32_t host_ = PoisonRecord::kFine;
};

// Every collective looks before it begins. One thread calls it.
__device__ inline bool CheckNotPoisoned(const DeviceRoutes& routes,
                                        moe_ep_failure_record* failure) {
  return PoisonLook(routes).Check(routes, failure);
}

// Tells every rank that can be reached. The first failure stays the group's cause, but for ranks
// that fail at the very same time.
__device__ inline void TellAll(const DeviceRoutes& routes, PoisonWord cause) {
  const uint64_t word = cause.Pack();
  for (int peer = 0; peer < routes.world_size; ++peer) {
    if (routes.bases[peer] == nullptr) continue;
    if (LoadSignal(routes.PoisonOf(peer)) == 0) StoreSignal(routes.PoisonOf(peer), word);
  }
}

// Fails this stream and tells every rank.
__device__ inline void PoisonAll(const DeviceRoutes& routes, PoisonWord cause,
                                 moe_ep_failure_record* failure) {
  TellAll(routes, cause);
  Fail(failure, routes.describe_poison, static_cast<int64_t>(cause.Pack()), routes.rank,
       routes.poison_id);
}

// Waits until `ready` says so. False when that does not come: with the stream in failure where
// somebody else has failed, else after `give_up(cause)`. `begin`: when the operation began, by
// Nanoseconds(). One thread calls it.
template <typename Ready, typename GiveUp>
__device__ inline bool WaitOrGiveUp(const DeviceRoutes& routes, const Patience& patience,
                                    uint64_t begin, const Ready& ready, const GiveUp& give_up) {
  // Words of the host are on the far side of a bus, so they are looked at now and then only.
  constexpr unsigned kLooksBetween = 256;
  for (unsigned looks = 1; !ready(); ++looks) {
    if (looks % kLooksBetween != 0) continue;
    if (!CheckNotPoisoned(routes, patience.failure)) return false;
    const bool aborted = LoadHostWord(patience.abort) != 0;
    const bool late = static_cast<int64_t>(Nanoseconds() - begin) > patience.timeout_ns;
    if (!aborted && !late) continue;
    give_up(aborted ? PoisonWord::kAborted : PoisonWord::kTimeout);
    return false;
  }
  return true;
}

// The same, with the group poisoned and the stream in failure when the deadline passes or the
// stream's owner goes away. `waited_for` gives the word to report, without its cause; it is asked
// only then.
template <typename Ready, typename WaitedFor>
__device__ inline bool WaitUntil(const DeviceRoutes& routes, const Patience& patience,
                                 uint64_t begin, const Ready& ready, const WaitedFor& waited_for) {
  return WaitOrGiveUp(routes, patience, begin, ready, [&](PoisonWord::Cause cause) {
    PoisonWord word = waited_for();
    word.cause = cause;
    PoisonAll(routes, word, patience.failure);
  });
}

// The same for one signal of this rank.
template <typename WaitedFor>
__device__ inline bool WaitSignal(const DeviceRoutes& routes, const Patience& patience,
                                  uint64_t begin, uint64_t index, uint64_t value,
                                  const WaitedFor& waited_for) {
  const uint64_t* signal = routes.Signal(routes.rank, index);
  return WaitUntil(
      routes, patience, begin, [=] { return LoadSignal(signal) >= value; }, waited_for);
}

}  // namespace moe_ep::cuda
