// The part of symmetric memory that one intranode buffer uses, and what it remembers between calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/refusal.h"
#include "moe_ep/transport/routes.h"

namespace moe_ep::cpu {

// Arguments that must be the same on every rank; they travel with the counts. All fields are
// compared.
struct SharedArguments {
  int64_t call;    // number of the dispatch: tells two apart that ranks started in different orders
  int64_t cached;  // 1: a plan is reused and no counts follow
  int64_t row_bytes;
  int64_t dtype;
  int64_t scale_columns;
  int64_t topk;
  int64_t topk_bytes;  // 4 or 8, the width of ids
  int64_t experts;
  int64_t channels;
  int64_t expert_alignment;
  int64_t has_weights;
  int64_t grouped;      // 1: rows go to their experts' places instead of one place a token
  int64_t plan_digest;  // of a cached plan's counts; 0 without a plan
};
inline constexpr const char* kSharedArgumentNames[] = {
    "number of the dispatch",
    "cached plan",
    "bytes of a row",
    "dtype",
    "scale columns",
    "topk",
    "bytes of an id",
    "numExperts",
    "numChannels",
    "expertAlignment",
    "topkWeights given",
    "grouped by expert",
    "digest of the plan",
};
inline constexpr int kNumSharedArguments = sizeof(SharedArguments) / sizeof(int64_t);
// An id that a rank cannot dispatch; it travels with the counts so that all ranks refuse alike.
struct InvalidId {
  int64_t token;  // -1: none
  int64_t id;
};

struct MessageHead {
  SharedArguments arguments;
  InvalidId invalid;
  int64_t
      room;  // rows that the rank can take: less than the capacity when they go to its own memory
  Refusal refusal;
};

static_assert(kNumSharedArguments == sizeof(kSharedArgumentNames) / sizeof(const char*));

// What all ranks must agree on in a combine.
struct CombineArguments {
  int64_t columns;
  int64_t dtype;
  int64_t topk;  // columns of the weights that are reduced too; 0: none
};

// Each rank leaves it in its own slot, beside the results that it describes.
struct CombineHead {
  CombineArguments arguments;
  Refusal refusal;
};

// Byte offsets in the payload, from the first slot's; all slots look alike.
struct BufferLayout {
  int64_t slots;
  int64_t slot_bytes;  // distance between two slots
  int64_t capacity;    // rows of a slot
  int64_t max_row_bytes;
  int64_t max_scale_columns;
  int64_t max_topk;
  int64_t max_experts;
  int64_t max_channels;
  int64_t rows_offset;
  int64_t scales_offset;
  int64_t source_index_offset;
  int64_t topk_idx_offset;
  int64_t topk_weights_offset;
  int64_t counts_offset;  // two messages a source: for even and for odd epochs
  int64_t counts_stride;
  int64_t combine_head_offset;
  int64_t
      column_scales_offset;  // scales of grouped rows, turned into columns by the receiver itself
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

// Signals of a source that no slot has: each tells of one refused dispatch. A call and the one so
// many later share a signal. No rank is that far ahead of itself on another stream, for no more
// dispatches can be in flight.
inline constexpr int64_t kRefusalSignals = 64;

// Epochs count calls, so signals need no cleaning. Only the stream that runs a kernel of the slot
// touches its state; a refusal, which has no slot, looks at the dispatch epochs of all.
struct SlotState {
  std::atomic<uint64_t> dispatch_epoch = 0;
  uint64_t settled_epoch =
      0;  // the newest dispatch whose counts all ranks agreed on: only its rows may be sent
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
  // Tells, with its number plus one, that `source` refused a dispatch.
  uint64_t RefusalSignalIndex(int64_t call, int source) const {
    const auto ranks = static_cast<uint64_t>(routes.world_size());
    const uint64_t first = static_cast<uint64_t>(layout.slots) * kNumSignalKinds * ranks;
    return first + static_cast<uint64_t>(call % kRefusalSignals) * ranks +
           static_cast<uint64_t>(source);
  }
  uint8_t* Rows(int rank, int64_t slot) const { return At(rank, slot, layout.rows_offset); }
  float* Scales(int rank, int64_t slot) const {
    return reinterpret_cast<float*>(At(rank, slot, layout.scales_offset));
  }
  float* ColumnScales(int rank, int64_t slot) const {
    return reinterpret_cast<float*>(At(rank, slot, layout.column_scales_offset));
  }
  // Index of each row at its source; of grouped rows the local expert.
  int32_t* SourceIndex(int rank, int64_t slot) const {
    return reinterpret_cast<int32_t*>(At(rank, slot, layout.source_index_offset));
  }
  uint8_t* TopkIdx(int rank, int64_t slot) const { return At(rank, slot, layout.topk_idx_offset); }
  float* TopkWeights(int rank, int64_t slot) const {
    return reinterpret_cast<float*>(At(rank, slot, layout.topk_weights_offset));
  }
  // The message that `source` leaves at `rank`: MessageHead, then i32 counts (see meeting.h).
  // Nobody can be two epochs ahead of a rank that has not told its counts, so two places that take
  // turns are enough.
  uint8_t* Counts(int rank, int64_t slot, int source, uint64_t epoch) const {
    const auto turn = static_cast<int64_t>(epoch % 2) * routes.world_size() + source;
    return At(rank, slot, layout.counts_offset + turn * layout.counts_stride);
  }
  CombineHead& CombineHeadOf(int rank, int64_t slot) const {
    return *reinterpret_cast<CombineHead*>(At(rank, slot, layout.combine_head_offset));
  }

  // False, with the stream in failure, unless the slot's newest dispatch has its counts: rows would
  // go anywhere.
  bool CheckSettled(const Exec& exec, int64_t slot) const {
    if (slots[slot].settled_epoch == slots[slot].dispatch_epoch) return true;
    exec.Fail("ERR_MOE_EP_INTERNAL",
              "intranode dispatch: rows were to be sent although the counts were refused");
    return false;
  }

  // Tells every rank, this one too. The order of ranks starts at the own one, so that not all begin
  // with rank 0.
  void SignalAll(int64_t slot, SignalKind kind, uint64_t value) const {
    for (int step = 0; step < routes.world_size(); ++step) {
      const int peer = (routes.rank() + step) % routes.world_size();
      routes.Signal(peer, SignalIndex(slot, kind, routes.rank()), value);
    }
  }

  // Waits until `source` has signalled. `operation` and `missing` name what the error speaks of.
  bool WaitFor(const Exec& exec, int64_t slot, SignalKind kind, int source, uint64_t value,
               int64_t deadline, const char* operation, const char* missing) const {
    return routes.Wait(exec, SignalIndex(slot, kind, source), value, deadline, [&] {
      return std::string(operation) + ", slot " + std::to_string(slot) + ": no " + missing +
             " from rank " + std::to_string(source);
    });
  }

  bool WaitForAll(const Exec& exec, int64_t slot, SignalKind kind, uint64_t value, int64_t deadline,
                  const char* operation, const char* missing) const {
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
