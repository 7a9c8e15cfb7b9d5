// The part of symmetric memory that one intranode buffer uses, and what it remembers between calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "failures.h"
#include "moe_ep/transport/routes.h"
#include "protocol.h"

namespace moe_ep {

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
    FailWith(exec, DescribeUnsettled);
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

}  // namespace moe_ep
