// A buffer as kernels see it: where things lie, who signals what, and waits for all ranks.
#pragma once

#include "buffer.h"
#include "cuda/kernels.h"
#include "moe_ep/cuda/lanes.cuh"
#include "moe_ep/cuda/last_block.cuh"
#include "moe_ep/transport/device_routes.cuh"

namespace moe_ep::cuda {

// Two blocks of this size fit on a multiprocessor: calls of two slots may run at once.
inline constexpr int kThreads = 512;
inline constexpr int kWarps = kThreads / kLanes;

// A kernel argument. The Buffer that it was made of keeps what it refers to.
struct DeviceBuffer {
  DeviceRoutes routes;
  BufferLayout layout;
  int64_t slot;

  __device__ int rank() const { return routes.rank; }
  __device__ int ranks() const { return routes.world_size; }

  __device__ uint64_t SignalIndex(SignalKind kind, int source) const {
    return (slot * kNumSignalKinds + static_cast<uint64_t>(kind)) * ranks() + source;
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
    const int64_t row = token * layout.max_topk + place;
    return reinterpret_cast<uint16_t*>(At(rank, layout.results_offset)) + row * layout.max_hidden;
  }
  __device__ SlotState& State() const {
    return *reinterpret_cast<SlotState*>(At(rank(), layout.state_offset));
  }

 private:
  __device__ int64_t TableOf(int source) const {
    return source * layout.max_tokens * PaddedTopk(layout.max_topk);
  }
  __device__ uint8_t* At(int rank, int64_t offset) const {
    return routes.Payload(rank, static_cast<uint64_t>(slot * layout.slot_bytes + offset));
  }
};

inline DeviceBuffer ToDevice(const Buffer& buffer, int64_t slot) {
  return {ToDevice(buffer.routes), buffer.layout, slot};
}

// Tells every rank, a lane each. What the block wrote before its last barrier is part of it. A warp
// calls it.
__device__ __forceinline__ void SignalAll(const DeviceBuffer& buffer, SignalKind kind,
                                          uint64_t value) {
  const int lane = threadIdx.x % kLanes;
  if (lane >= buffer.ranks()) return;
  StoreSignal(buffer.routes.Signal(lane, buffer.SignalIndex(kind, buffer.rank())), value);
}

// What a wait is for.
struct Awaited {
  SignalKind kind;
  uint64_t value;
  Operation operation;
  Missing missing;
};

// Words of the host lie on the far side of a bus that serves one block after the other, a
// microsecond each. So one block looks at them and at the clock, in the name of all; it fails the
// stream, and that is what the others see.
__device__ __forceinline__ bool IsWatcher() { return blockIdx.x == 0; }

// Whether the stream and the group are well, as this thread sees it: ask all threads together. The
// last thread looks at the host's word while the first ones wait for peers.
__device__ inline bool MayBegin(const DeviceBuffer& buffer, moe_ep_failure_record* failure) {
  if (Failed(failure)) return false;
  return !IsWatcher() || threadIdx.x != kThreads - 1 || CheckNotPoisoned(buffer.routes, failure);
}

// One thread waits for a peer's signal.
__device__ inline bool WaitFor(const DeviceBuffer& buffer, const Patience& patience, uint64_t begin,
                               Awaited awaited, int peer) {
  const uint64_t index = buffer.SignalIndex(awaited.kind, peer);
  if (IsWatcher()) {
    return WaitSignal(buffer.routes, patience, begin, index, awaited.value, [&]() -> PoisonWord {
      return {PoisonWord::kNone,
              awaited.operation,
              awaited.missing,
              static_cast<uint8_t>(buffer.slot),
              static_cast<uint16_t>(buffer.rank()),
              static_cast<uint16_t>(peer)};
    });
  }
  constexpr unsigned kLooksBetween = 64;
  const uint64_t* const signal = buffer.routes.Signal(buffer.rank(), index);
  for (unsigned looks = 1; LoadSignal(signal) < awaited.value; ++looks)
    if (looks % kLooksBetween == 0 && Failed(patience.failure)) return false;
  return true;
}

// Waits until every rank has signalled, a thread for each; the same answer for all threads of the
// block, which all call it, as all blocks do. `waited` [ranks], if given, grows by nanoseconds.
// `ok`: what a thread knows besides, and all hear.
__device__ inline bool WaitForAll(const DeviceBuffer& buffer, const Patience& patience,
                                  uint64_t begin, Awaited awaited, int64_t* waited = nullptr,
                                  bool ok = true) {
  if (ok && static_cast<int>(threadIdx.x) < buffer.ranks()) {
    const int peer = static_cast<int>(threadIdx.x);
    const uint64_t since = waited == nullptr ? 0 : Nanoseconds();
    ok = WaitFor(buffer, patience, begin, awaited, peer);
    if (waited != nullptr) waited[peer] += static_cast<int64_t>(Nanoseconds() - since);
  }
  return __syncthreads_and(ok) != 0;
}

// Copies up to kVectors vectors of 16 bytes a lane, from the `at`-th on, all loads before the
// stores. A warp calls it.
template <int kVectors>
__device__ __forceinline__ void CopyPiece(void* to, const void* from, int at, int vectors) {
  const auto* const source = static_cast<const uint4*>(from);
  uint4 v[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (at + i * kLanes < vectors) v[i] = __ldcg(source + at + i * kLanes);
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (at + i * kLanes < vectors) static_cast<uint4*>(to)[at + i * kLanes] = v[i];
}

}  // namespace moe_ep::cuda
