// A buffer as kernels see it: where things lie, who signals what, and waits for all ranks.
#pragma once

#include "buffer.h"
#include "cuda/kernels.h"
#include "moe_ep/cuda/lanes.cuh"
#include "moe_ep/transport/device_routes.cuh"

namespace moe_ep::cuda {

// Two blocks of this size, with 128 registers a thread, fit on a multiprocessor: calls of two slots
// may run at once. More threads with fewer registers are slower: they spill.
inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kLanes;

// A kernel argument. The Buffer that it was made of keeps what it refers to.
struct DeviceBuffer {
  DeviceRoutes routes;
  BufferLayout layout;
  int64_t slot;
  bool masks_late;
  DeviceState* first_state;  // of the buffer's first slot
  // Of each rank's slot: among the arguments they are at hand, in memory a look takes as long as
  // any.
  uint8_t* slots[kMostRanks];
  uint64_t* signals[kMostRanks];

  __device__ int rank() const { return routes.rank; }
  __device__ int ranks() const { return routes.world_size; }

  __device__ uint64_t SignalIndex(SignalKind kind, int source) const {
    return (slot * kNumSignalKinds + static_cast<uint64_t>(kind)) * ranks() + source;
  }
  __device__ uint64_t* Signal(int rank, SignalKind kind, int source) const {
    return reinterpret_cast<uint64_t*>(reinterpret_cast<uint8_t*>(signals[rank]) +
                                       SignalIndex(kind, source) * sizeof(SignalCell));
  }
  __device__ DispatchHead& Head(int rank, int source) const {
    return reinterpret_cast<DispatchHead*>(At(rank, layout.heads_offset))[source];
  }
  // Tables of a source's tokens: rows of PaddedTopk(topk).
  __device__ int32_t* Ids(int rank, int source) const {
    return reinterpret_cast<int32_t*>(At(rank, layout.ids_offset)) + TableOf(source);
  }
  __device__ float* Weights(int rank, int source) const {
    return reinterpret_cast<float*>(At(rank, layout.weights_offset)) + TableOf(source);
  }
  // `selection`: 0 where a rank gets a row once.
  __device__ uint8_t* Message(int rank, int source, int64_t token, int selection) const {
    const int64_t place = (source * layout.max_tokens + token) * layout.messages_per_token;
    return At(rank, layout.messages_offset + (place + selection) * layout.message_bytes);
  }
  __device__ uint16_t* Result(int rank, int64_t token, int64_t place) const {
    const int64_t row = token * layout.results_per_token + place;
    return reinterpret_cast<uint16_t*>(At(rank, layout.results_offset)) + row * layout.max_hidden;
  }
  __device__ DeviceState& Own() const {
    return *reinterpret_cast<DeviceState*>(At(rank(), layout.state_offset));
  }
  __device__ SlotState& State() const { return Own().slot; }
  __device__ RankBits Unmasked() const { return ~__ldcg(&first_state->mask); }

 private:
  __device__ int64_t TableOf(int source) const {
    return source * layout.max_tokens * PaddedTopk(layout.max_topk);
  }
  __device__ uint8_t* At(int rank, int64_t offset) const { return slots[rank] + offset; }
};

inline DeviceBuffer ToDevice(const Buffer& buffer, int64_t slot) {
  const int64_t state = buffer.layout.state_offset;
  auto* const first =
      buffer.routes.payload<DeviceState>(buffer.routes.rank(), static_cast<uint64_t>(state));
  DeviceBuffer made = {
      ToDevice(buffer.routes), buffer.layout, slot, buffer.masks_late, first, {}, {}};
  for (int rank = 0; rank < buffer.routes.world_size(); ++rank) {
    made.slots[rank] =
        buffer.routes.payload(rank, static_cast<uint64_t>(slot * buffer.layout.slot_bytes));
    made.signals[rank] = reinterpret_cast<uint64_t*>(&buffer.routes.signal(rank, 0));
  }
  return made;
}

// Tells every rank that this rank has unpacked what they sent for a dispatch that has ended: the
// next kernel of the slot does, and one warp of it, so that no kernel's end waits for its last
// block.
__device__ __forceinline__ void TellFree(const DeviceBuffer& buffer, uint64_t epoch) {
  if (blockIdx.x != 0 || threadIdx.x / kLanes != 1) return;
  const int lane = threadIdx.x % kLanes;
  if (lane < buffer.ranks())
    StoreSignal(buffer.Signal(lane, SignalKind::kFree, buffer.rank()), epoch);
}

// A signal of which each block tells a part, as soon as what it wrote is on its way. Made when a
// kernel begins: what tells how far it has come is asked for then.
class SharedSignal {
 public:
  __device__ SharedSignal(const DeviceBuffer& buffer, SignalKind kind)
      : kind_(kind), told_(__ldcg(&buffer.Own().told[static_cast<int>(kind)])) {}

  // Tells all ranks this block's part, a lane each. What the block wrote before its last barrier is
  // part of it. A warp calls it.
  __device__ __forceinline__ void TellPart(const DeviceBuffer& buffer, uint64_t value) const {
    const int lane = threadIdx.x % kLanes;
    if (lane >= buffer.ranks()) return;
    AddSignal(buffer.Signal(lane, kind_, buffer.rank()),
              static_cast<int64_t>(SignalPart(value - told_, blockIdx.x, gridDim.x)));
  }
  // What was told before.
  __device__ uint64_t told() const { return told_; }
  // Once all blocks have told their part. One thread of all blocks calls it.
  __device__ __forceinline__ void Keep(const DeviceBuffer& buffer, uint64_t value) const {
    buffer.Own().told[static_cast<int>(kind_)] = value;
  }

 private:
  SignalKind kind_;
  uint64_t told_;
};

// Numbers the waits of a slot, in their order.
enum class Wait { kToSend = 0, kToPutTables = 1, kToReceive = 2, kToSum = 3 };
__device__ __forceinline__ uint64_t StepOf(uint64_t epoch, Wait wait) {
  return epoch * 4 + static_cast<uint64_t>(wait);
}

// What a wait is for.
struct Awaited {
  SignalKind kind;
  uint64_t value;
  uint64_t step;  // of the slot: StepOf
  Operation operation;
  Missing missing;
};

// Words of the host lie on the far side of a bus that serves one block after the other, a
// microsecond each. So one block looks at them and at the clock, in the name of all; it fails the
// stream, and that is what the others see.
__device__ __forceinline__ bool IsWatcher() { return blockIdx.x == 0; }

// Whether the group is well: asked for when this is made, checked once there is time. The last
// thread of the watcher does both; the others answer that all is well. What was sent meanwhile is
// not announced when it is not, so nobody reads it.
class GroupLook {
 public:
  __device__ explicit GroupLook(const DeviceBuffer& buffer) {
    if (Looks()) look_ = PoisonLook(buffer.routes);
  }
  // False, with the stream in failure, when it is not.
  __device__ bool Check(const DeviceBuffer& buffer, moe_ep_failure_record* failure) const {
    return !Looks() || look_.Check(buffer.routes, failure);
  }

 private:
  __device__ static bool Looks() { return IsWatcher() && threadIdx.x == kThreads - 1; }
  PoisonLook look_;
};

// What is reported of a wait for a peer, without its cause.
__device__ inline PoisonWord WaitedFor(const DeviceBuffer& buffer, Awaited awaited, int peer) {
  return {PoisonWord::kNone,
          awaited.operation,
          awaited.missing,
          static_cast<uint8_t>(buffer.slot),
          static_cast<uint16_t>(buffer.rank()),
          static_cast<uint16_t>(peer)};
}

// Brings a kernel's arguments near, a line for each warp and then the next: a launch has them far
// away, and each line that is met for the first time costs its reader a wait. All threads of the
// block call it, before they wait for the kernel before.
template <typename Arguments>
__device__ __forceinline__ void FetchArguments(const Arguments& arguments) {
  constexpr int kLine = 64;
  const auto* const bytes = reinterpret_cast<const char*>(&arguments);
  for (int line = threadIdx.x / kLanes; line * kLine < static_cast<int>(sizeof(Arguments));
       line += kWarps) {
    const auto word = *reinterpret_cast<const uint32_t*>(bytes + line * kLine);
    asm volatile("" ::"r"(word));
  }
}

// Whether the stream has failed, by a kernel of another branch of its graph, say: for those who
// wait for something else, which they look at more often.
class FailureLook {
 public:
  __device__ explicit FailureLook(const moe_ep_failure_record* failure) : failure_(failure) {}
  __device__ bool Failed() {
    constexpr unsigned kLooksBetween = 64;
    return ++looks_ % kLooksBetween == 0 && cuda::Failed(failure_);
  }

 private:
  const moe_ep_failure_record* failure_;
  unsigned looks_ = 0;
};

// One thread waits for a peer's signal; `seen` is what it was in the end.
__device__ inline bool WaitFor(const DeviceBuffer& buffer, const Patience& patience, uint64_t begin,
                               Awaited awaited, int peer, uint64_t* seen) {
  const uint64_t* const signal = buffer.Signal(buffer.rank(), awaited.kind, peer);
  FailureLook look(patience.failure);
  const auto ended = [&] { return (*seen = LoadSignal(signal)) >= awaited.value || look.Failed(); };
  if (IsWatcher()) {
    WaitUntil(buffer.routes, patience, begin, ended,
              [&] { return WaitedFor(buffer, awaited, peer); });
  } else {
    while (!ended()) {
    }
  }
  return *seen >= awaited.value;
}

// One thread masks more ranks. Calls of another slot may do the same.
__device__ __forceinline__ void MaskToo(const DeviceBuffer& buffer, RankBits ranks) {
  atomicOr(reinterpret_cast<unsigned long long*>(&buffer.first_state->mask), ranks);
}

// Waits where late ranks are masked: the watcher finds out who is present, the others go by what it
// says, so that all blocks go on with the same ranks. All threads of the block call it.
__device__ inline bool WaitForPresent(const DeviceBuffer& buffer, const Patience& patience,
                                      uint64_t begin, Awaited awaited, bool ok, RankBits* present) {
  __shared__ RankBits decided;
  DeviceState& own = buffer.Own();
  if (threadIdx.x == 0) decided = *present;
  __syncthreads();
  if (IsWatcher()) {
    const int peer = static_cast<int>(threadIdx.x);
    if (ok && peer < buffer.ranks() && TakesPart(*present, peer)) {
      const uint64_t* const signal = buffer.Signal(buffer.rank(), awaited.kind, peer);
      FailureLook look(patience.failure);
      WaitOrGiveUp(
          buffer.routes, patience, begin,
          [&] { return LoadSignal(signal) >= awaited.value || look.Failed(); },
          [&](PoisonWord::Cause cause) {
            if (cause == PoisonWord::kTimeout && peer != buffer.rank()) {
              atomicAnd(reinterpret_cast<unsigned long long*>(&decided), ~BitOf(peer));
            } else {
              PoisonWord word = WaitedFor(buffer, awaited, peer);
              word.cause = cause;
              PoisonAll(buffer.routes, word, patience.failure);
            }
          });
      // Late is not failed.
      ok = !Failed(patience.failure);
    }
    ok = __syncthreads_and(ok) != 0;
    // The others of a call that failed see that it has, and the next one has the same number.
    if (ok && threadIdx.x == 0) {
      MaskToo(buffer, *present & ~decided);
      own.decided = decided;
      __threadfence();
      *static_cast<volatile uint64_t*>(&own.decisions) = awaited.step;
    }
  } else if (ok && threadIdx.x == 0) {
    FailureLook look(patience.failure);
    while (ok && *static_cast<volatile uint64_t*>(&own.decisions) < awaited.step)
      ok = !look.Failed();
    __threadfence();
    decided = __ldcg(&own.decided);
  }
  ok = __syncthreads_and(ok) != 0;
  if (ok) *present = decided;
  return ok;
}

// Waits until every rank that is present has signalled, a thread for each; the same answer for all
// threads of the block, which all call it, as all blocks do. `waited` [ranks], if given, grows by
// nanoseconds. `ok`: what a thread knows besides, and all hear. `notes` [ranks], if given: what the
// signals said, 0 where a rank is absent.
__device__ inline bool WaitForAll(const DeviceBuffer& buffer, const Patience& patience,
                                  uint64_t begin, Awaited awaited, bool ok, RankBits* present,
                                  int64_t* waited = nullptr, int* notes = nullptr) {
  const int peer = static_cast<int>(threadIdx.x);
  if (buffer.masks_late) ok = WaitForPresent(buffer, patience, begin, awaited, ok, present);
  if (peer < buffer.ranks() && TakesPart(*present, peer)) {
    const uint64_t since = waited == nullptr ? 0 : Nanoseconds();
    // A first look, before it is known whether to go on: what tells that is still on its way.
    uint64_t value = LoadSignal(buffer.Signal(buffer.rank(), awaited.kind, peer));
    if (ok && value < awaited.value) ok = WaitFor(buffer, patience, begin, awaited, peer, &value);
    if (notes != nullptr) notes[peer] = NoteOf(value);
    if (waited != nullptr) waited[peer] += static_cast<int64_t>(Nanoseconds() - since);
  } else if (notes != nullptr && peer < buffer.ranks()) {
    notes[peer] = 0;
  }
  return __syncthreads_and(ok) != 0;
}

// One thread of each block calls it once the block knows whether it has failed, and nobody waits
// for it: the thread of the last block calls last(how many have failed), and sees what these
// threads wrote. `arrived` is zero before and after.
__device__ __forceinline__ bool IsArriving() { return threadIdx.x == kThreads - kLanes; }
template <typename Last>
__device__ __forceinline__ void Arrive(unsigned int* arrived, bool failed, const Last& last) {
  constexpr unsigned kFailure = 1u << 16;
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(arrived), "r"(failed ? kFailure + 1 : 1u)
               : "memory");
  if ((before & (kFailure - 1)) != gridDim.x - 1) return;
  *arrived = 0;
  last(before / kFailure + (failed ? 1 : 0));
}

// What the last block of a send phase does where some have failed. Blocks fail alike, but for a
// failure of the stream that comes while they begin, from another branch of a graph or by an abort:
// then the signal was told in part, nobody could count with what follows, and the group ends here.
__device__ inline void EndFailedSend(const DeviceBuffer& buffer, const Patience& patience,
                                     unsigned failed, Operation operation, Missing missing,
                                     moe_ep_failure_record* snapshot) {
  if (failed < gridDim.x) {
    PoisonWord word =
        WaitedFor(buffer, {.operation = operation, .missing = missing}, buffer.rank());
    word.cause = PoisonWord::kAborted;
    PoisonAll(buffer.routes, word, patience.failure);
  }
  SnapshotFailure(patience.failure, snapshot);
}

// Lets the next kernel of the stream take its places, where it waits for the end of this one.
// Called when no wait for peers is left: places are what other ranks' kernels on the same GPU may
// need.
__device__ __forceinline__ void LetNextBegin() { cudaTriggerProgrammaticLaunchCompletion(); }

}  // namespace moe_ep::cuda
