// A buffer as kernels see it: where things lie, who signals what, and waits for all ranks.
#pragma once

#include "buffer.h"
#include "cuda/kernels.h"
#include "moe_ep/cuda/lanes.cuh"
#include "moe_ep/cuda/last_block.cuh"
#include "moe_ep/transport/device_routes.cuh"

namespace moe_ep::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kLanes;
// Ranks that share a GPU wait for one another, so that the blocks of all of them must have room.
inline constexpr int64_t kMostBlocks = 32;

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
  __device__ uint8_t* Message(int rank, int source, int64_t index) const {
    const int64_t place = source * layout.max_tokens + index;
    return At(rank, layout.messages_offset + place * layout.message_bytes);
  }
  __device__ int64_t row_offset() const { return HeaderBytes(layout.max_topk); }
  __device__ uint16_t* Result(int rank, int64_t token, int64_t place) const {
    const int64_t row = token * layout.max_topk + place;
    return reinterpret_cast<uint16_t*>(At(rank, layout.results_offset)) + row * layout.max_hidden;
  }
  __device__ SlotState& State() const {
    return *reinterpret_cast<SlotState*>(At(rank(), layout.state_offset));
  }

 private:
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

// Waits until every rank has signalled, a lane for each; the same answer for all threads of the
// block, which all call it. `waited` [ranks], if given, grows by nanoseconds.
__device__ inline bool WaitForAll(const DeviceBuffer& buffer, const Patience& patience,
                                  uint64_t begin, Awaited awaited, int64_t* waited = nullptr) {
  bool ok = true;
  if (static_cast<int>(threadIdx.x) < buffer.ranks()) {
    const int peer = static_cast<int>(threadIdx.x);
    ok = WaitSignal(buffer.routes, patience, begin, buffer.SignalIndex(awaited.kind, peer),
                    awaited.value, [&]() -> PoisonWord {
                      return {PoisonWord::kNone,
                              awaited.operation,
                              awaited.missing,
                              static_cast<uint8_t>(buffer.slot),
                              static_cast<uint16_t>(buffer.rank()),
                              static_cast<uint16_t>(peer)};
                    });
    if (waited != nullptr) waited[peer] += static_cast<int64_t>(Nanoseconds() - begin);
  }
  return __syncthreads_and(ok) != 0;
}

// Whether the stream and the group are well, the same for all threads of a block.
__device__ inline bool MayBegin(const DeviceBuffer& buffer, moe_ep_failure_record* failure) {
  if (FailedForBlock(failure)) return false;
  const bool ok = threadIdx.x != 0 || CheckNotPoisoned(buffer.routes, failure);
  return __syncthreads_and(ok) != 0;
}

// Copies whole vectors of 16 bytes; all threads of a block, or of a warp, call it.
__device__ __forceinline__ void CopyVectors(void* to, const void* from, int64_t bytes, int thread,
                                            int threads) {
  auto* target = static_cast<uint4*>(to);
  const auto* source = static_cast<const uint4*>(from);
#pragma unroll 4
  for (int64_t i = thread; i < bytes / 16; i += threads) target[i] = source[i];
}

}  // namespace moe_ep::cuda
