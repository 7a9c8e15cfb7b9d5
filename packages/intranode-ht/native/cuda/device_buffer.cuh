// A buffer as kernels see it: where things lie, who signals what, and waits for all ranks.
#pragma once

#include "buffer.h"
#include "moe_ep/cuda/lanes.cuh"
#include "moe_ep/cuda/last_block.cuh"
#include "moe_ep/transport/device_routes.cuh"

namespace moe_ep::cuda {

inline constexpr int kMostRanks = kLanes;  // a lane for each

// A kernel argument. The Buffer that it was made of keeps what it refers to.
struct DeviceBuffer {
  DeviceRoutes routes;
  BufferLayout layout;
  int64_t slot;
  // Of each rank: among the arguments they are at hand, in memory a look takes half a microsecond.
  uint8_t* payloads[kMostRanks];

  __device__ int rank() const { return routes.rank; }
  __device__ int ranks() const { return routes.world_size; }

  __device__ uint64_t SignalIndex(SignalKind kind, int source) const {
    return SignalIndexIn(slot, kind, source);
  }
  __device__ uint64_t SignalIndexIn(int64_t of_slot, SignalKind kind, int source) const {
    return (of_slot * kNumSignalKinds + static_cast<uint64_t>(kind)) * ranks() + source;
  }
  __device__ uint64_t RefusalSignalIndex(int64_t call, int source) const {
    return static_cast<uint64_t>(layout.slots) * kNumSignalKinds * ranks() +
           static_cast<uint64_t>(call % kRefusalSignals) * ranks() + source;
  }
  __device__ uint8_t* Rows(int rank) const { return At(rank, layout.rows_offset); }
  __device__ float* Scales(int rank) const {
    return reinterpret_cast<float*>(At(rank, layout.scales_offset));
  }
  __device__ float* ColumnScales(int rank) const {
    return reinterpret_cast<float*>(At(rank, layout.column_scales_offset));
  }
  __device__ int32_t* SourceIndex(int rank) const {
    return reinterpret_cast<int32_t*>(At(rank, layout.source_index_offset));
  }
  __device__ uint8_t* TopkIdx(int rank) const { return At(rank, layout.topk_idx_offset); }
  __device__ float* TopkWeights(int rank) const {
    return reinterpret_cast<float*>(At(rank, layout.topk_weights_offset));
  }
  __device__ CombineHead& CombineHeadOf(int rank) const {
    return *reinterpret_cast<CombineHead*>(At(rank, layout.combine_head_offset));
  }
  // Of a run of a rank's own tokens.
  __device__ TokenPlaces PlacesOf(int rank, int64_t run, int64_t topk) const {
    return {At(rank, layout.places_offset + run * TokenPlaces::Bytes(topk)), topk};
  }
  // At `rank`: the dispatch in which `source` has sent the rows of a run of its tokens.
  __device__ uint64_t* SentOf(int rank, int source, int64_t run) const {
    return reinterpret_cast<uint64_t*>(At(rank, layout.sent_offset)) + source * layout.max_runs +
           run;
  }
  // At `rank`: the combine for which `source` has added up the rows of a run of the rank's tokens.
  __device__ uint64_t* ReducedOf(int rank, int source, int64_t run) const {
    return reinterpret_cast<uint64_t*>(At(rank, layout.reduced_offset)) + source * layout.max_runs +
           run;
  }
  // The message that `source` leaves at `rank`: see Buffer::Counts.
  __device__ Message MessageAt(int rank, int source, uint64_t epoch) const {
    return MessageIn(slot, rank, source, epoch);
  }
  __device__ Message MessageIn(int64_t of_slot, int rank, int source, uint64_t epoch) const {
    const int64_t turn = static_cast<int64_t>(epoch % 2) * ranks() + source;
    uint8_t* const base = AtSlot(of_slot, rank, layout.counts_offset + turn * layout.counts_stride);
    return {base, ranks(), layout.max_experts};
  }
  // The messages that this rank has got: where they lie is asked for once.
  struct Inbox {
    uint8_t* base;
    int64_t stride;
    int64_t ranks;
    int64_t max_experts;

    __device__ Message From(int source) const {
      return {base + source * stride, ranks, max_experts};
    }
  };
  __device__ Inbox InboxOf(uint64_t epoch) const {
    return {MessageAt(rank(), 0, epoch).base, layout.counts_stride, ranks(), layout.max_experts};
  }
  __device__ SlotEpochs& Epochs() const { return EpochsOf(slot); }
  __device__ SlotEpochs& EpochsOf(int64_t of_slot) const {
    return *reinterpret_cast<SlotEpochs*>(AtSlot(of_slot, rank(), layout.epochs_offset));
  }

 private:
  __device__ uint8_t* At(int rank, int64_t offset) const { return AtSlot(slot, rank, offset); }
  __device__ uint8_t* AtSlot(int64_t of_slot, int rank, int64_t offset) const {
    return payloads[rank] + of_slot * layout.slot_bytes + offset;
  }
};

inline DeviceBuffer ToDevice(const Buffer& buffer, int64_t slot) {
  DeviceBuffer made = {ToDevice(buffer.routes), buffer.layout, slot, {}};
  for (int rank = 0; rank < buffer.routes.world_size(); ++rank)
    made.payloads[rank] = buffer.routes.payload(rank, 0);
  return made;
}

// Tells every rank, a lane each. What the block wrote before its last barrier is part of it. A warp
// calls it.
__device__ __forceinline__ void SignalAll(const DeviceBuffer& buffer, SignalKind kind,
                                          uint64_t value, int lane) {
  if (lane >= buffer.ranks()) return;
  StoreSignal(buffer.routes.Signal(lane, buffer.SignalIndex(kind, buffer.rank())), value);
}

// What is reported of a wait for a peer, without its cause.
__device__ __forceinline__ PoisonWord WaitedFor(const DeviceBuffer& buffer, Operation operation,
                                                Missing missing, int peer) {
  return {PoisonWord::kNone,
          operation,
          missing,
          static_cast<uint8_t>(buffer.slot),
          static_cast<uint16_t>(buffer.rank()),
          static_cast<uint16_t>(peer)};
}

// Waits until every rank has signalled, a lane for each. A warp calls it.
__device__ __forceinline__ bool WaitForAll(const DeviceBuffer& buffer, const Patience& patience,
                                           uint64_t begin, SignalKind kind, uint64_t value,
                                           Operation operation, Missing missing, int lane) {
  bool ok = true;
  if (lane < buffer.ranks()) {
    ok = WaitSignal(buffer.routes, patience, begin, buffer.SignalIndex(kind, lane), value,
                    [&] { return WaitedFor(buffer, operation, missing, lane); });
  }
  ok = __all_sync(kAllLanes, ok);
  __syncwarp();  // what one lane has seen counts for all
  return ok;
}

// Ends the second half of a combine: tells all ranks that their results were read, unless the
// stream has failed. A warp of the last block calls it.
__device__ __forceinline__ void EndCombine(const DeviceBuffer& buffer,
                                           const moe_ep_failure_record* failure,
                                           moe_ep_failure_record* snapshot, int lane) {
  if (!FailedForWarp(failure))
    return SignalAll(buffer, SignalKind::kCombineRead, buffer.Epochs().combine, lane);
  if (lane == 0) SnapshotFailure(failure, snapshot);
}

}  // namespace moe_ep::cuda
