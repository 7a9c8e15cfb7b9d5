// The part of symmetric memory that one intranode buffer uses, and what it remembers between calls.
#pragma once

#include <cstdint>
#include <vector>

#include "moe_ep/transport/routes.h"

namespace moe_ep::cpu {

// Arguments that must be the same on every rank; they travel with the counts. All fields are compared.
struct SharedArguments {
  int64_t cached;  // 1: a plan is reused and no counts follow
  int64_t row_bytes;
  int64_t scale_columns;
  int64_t topk;
  int64_t topk_bytes;  // 4 or 8, the width of ids
  int64_t experts;
  int64_t channels;
  int64_t expert_alignment;
  int64_t has_weights;
};
inline constexpr const char* kSharedArgumentNames[] = {
    "cached plan", "bytes of a row", "scale columns", "topk", "bytes of an id", "numExperts", "numChannels",
    "expertAlignment", "topkWeights given",
};
inline constexpr int kNumSharedArguments = sizeof(SharedArguments) / sizeof(int64_t);
static_assert(kNumSharedArguments == sizeof(kSharedArgumentNames) / sizeof(const char*));

// Byte offsets in the payload, from the first slot's; all slots look alike.
struct BufferLayout {
  int64_t slots;
  int64_t slot_bytes;  // distance between two slots
  int64_t capacity;    // rows of a slot
  int64_t max_row_bytes;
  int64_t max_scale_columns;
  int64_t max_topk;
  int64_t max_local_experts;
  int64_t max_channels;
  int64_t rows_offset;
  int64_t scales_offset;
  int64_t source_index_offset;
  int64_t topk_idx_offset;
  int64_t topk_weights_offset;
  int64_t counts_offset;  // one message a source
  int64_t counts_stride;
};
inline constexpr int kNumLayoutFields = sizeof(BufferLayout) / sizeof(int64_t);

// What the signals of a slot mean. Each rank has one of every kind from every source.
enum class SignalKind : uint64_t {
  kCounts = 0,        // the source's slot is free and its counts are here
  kRows = 1,          // the source's rows are here
  kCombineReady = 2,  // the source's results lie in its slot
  kCombineRead = 3,   // the source has read this rank's results
};
inline constexpr uint64_t kNumSignalKinds = 4;

// Only the stream that runs this buffer's kernels touches it. Epochs count calls, so signals need no cleaning.
struct SlotState {
  uint64_t dispatch_epoch = 0;
  uint64_t combine_epoch = 0;
};

struct Buffer {
  Routes routes;
  BufferLayout layout;
  std::vector<SlotState> slots;

  uint64_t SignalIndex(int64_t slot, SignalKind kind, int source) const {
    const auto ranks = static_cast<uint64_t>(routes.world_size());
    return (static_cast<uint64_t>(slot) * kNumSignalKinds + static_cast<uint64_t>(kind)) * ranks +
           static_cast<uint64_t>(source);
  }
  uint8_t* Rows(int rank, int64_t slot) const { return At(rank, slot, layout.rows_offset); }
  float* Scales(int rank, int64_t slot) const { return reinterpret_cast<float*>(At(rank, slot, layout.scales_offset)); }
  int32_t* SourceIndex(int rank, int64_t slot) const {
    return reinterpret_cast<int32_t*>(At(rank, slot, layout.source_index_offset));
  }
  uint8_t* TopkIdx(int rank, int64_t slot) const { return At(rank, slot, layout.topk_idx_offset); }
  float* TopkWeights(int rank, int64_t slot) const {
    return reinterpret_cast<float*>(At(rank, slot, layout.topk_weights_offset));
  }
  // The message that `source` leaves at `rank`: SharedArguments, then i32 counts (see notify.cc).
  uint8_t* Counts(int rank, int64_t slot, int source) const {
    return At(rank, slot, layout.counts_offset + source * layout.counts_stride);
  }

  // Tells every rank, this one too. The order of ranks starts at the own one, so that not all begin with rank 0.
  void SignalAll(int64_t slot, SignalKind kind, uint64_t value) const {
    for (int step = 0; step < routes.world_size(); ++step) {
      const int peer = (routes.rank() + step) % routes.world_size();
      routes.Signal(peer, SignalIndex(slot, kind, routes.rank()), value);
    }
  }

  // Waits until `source` has signalled. `operation` and `missing` name what the error speaks of.
  bool WaitFor(const Exec& exec, int64_t slot, SignalKind kind, int source, uint64_t value, int64_t deadline,
               const char* operation, const char* missing) const {
    return routes.Wait(exec, SignalIndex(slot, kind, source), value, deadline, [&] {
      return std::string(operation) + ", slot " + std::to_string(slot) + ": no " + missing + " from rank " +
             std::to_string(source);
    });
  }

  bool WaitForAll(const Exec& exec, int64_t slot, SignalKind kind, uint64_t value, int64_t deadline, const char* operation,
                  const char* missing) const {
    for (int step = 0; step < routes.world_size(); ++step) {
      const int source = (routes.rank() + step) % routes.world_size();
      if (!WaitFor(exec, slot, kind, source, value, deadline, operation, missing)) return false;
    }
    return true;
  }

 private:
  uint8_t* At(int rank, int64_t slot, int64_t offset) const {
    return routes.payload(rank, static_cast<uint64_t>(slot * layout.slot_bytes + offset));
  }
};

}  // namespace moe_ep::cpu
