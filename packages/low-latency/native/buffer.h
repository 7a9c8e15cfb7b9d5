// The part of symmetric memory that one low-latency buffer uses, and what it remembers between
// calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "failures.h"
#include "moe_ep/transport/routes.h"
#include "protocol.h"

namespace moe_ep {

// Epochs count calls, so signals need no cleaning, and a graph that is replayed advances them. Only
// the stream that runs a kernel of the slot touches its state.
struct SlotState {
  uint64_t epoch = 0;     // dispatches that began
  uint64_t received = 0;  // the newest dispatch whose rows are there
  RankBits present = 0;   // ranks that take part in the newest dispatch
};

// The same in the memory of a cuda device, for kernels.
struct DeviceState {
  SlotState slot;
  // What the slot's signals told last, by kind: the same to all ranks.
  uint64_t told[kNumSignalKinds];
  RankBits mask;  // of the first slot's: the buffer's
  // Where late ranks are masked one block decides for all who is present.
  uint64_t decisions;  // the newest one's number
  RankBits decided;
};

struct Buffer {
  Routes routes;
  BufferLayout layout;
  std::vector<SlotState> slots;
  bool masks_late = false;  // a rank that does not come in time is masked, which is no failure
  // Ranks that are neither sent to nor waited for. Commands change it, in the order of streams.
  mutable std::atomic<RankBits> mask{0};

  RankBits Unmasked() const { return ~mask.load(std::memory_order_relaxed); }

  DispatchHead& Head(int rank, int64_t slot, int source) const {
    return reinterpret_cast<DispatchHead*>(At(rank, slot, layout.heads_offset))[source];
  }
  // Tables of a source's tokens: rows of PaddedTopk(topk).
  int32_t* Ids(int rank, int64_t slot, int source) const {
    return reinterpret_cast<int32_t*>(At(rank, slot, layout.ids_offset)) + TableOf(source);
  }
  float* Weights(int rank, int64_t slot, int source) const {
    return reinterpret_cast<float*>(At(rank, slot, layout.weights_offset)) + TableOf(source);
  }
  // `selection`: 0 where a rank gets a row once.
  uint8_t* Message(int rank, int64_t slot, int source, int64_t token, int64_t selection) const {
    const int64_t place = (source * layout.max_tokens + token) * layout.messages_per_token;
    return At(rank, slot, layout.messages_offset + (place + selection) * layout.message_bytes);
  }
  uint16_t* Result(int rank, int64_t slot, int64_t token, int64_t place) const {
    const int64_t row = token * layout.results_per_token + place;
    return reinterpret_cast<uint16_t*>(At(rank, slot, layout.results_offset)) +
           row * layout.max_hidden;
  }

  uint64_t SignalIndex(int64_t slot, SignalKind kind, int source) const {
    const auto ranks = static_cast<uint64_t>(routes.world_size());
    return (static_cast<uint64_t>(slot) * kNumSignalKinds + static_cast<uint64_t>(kind)) * ranks +
           static_cast<uint64_t>(source);
  }
  // Peers in an order that starts at the own rank, so that not all begin with rank 0.
  int PeerAt(int step) const { return (routes.rank() + step) % routes.world_size(); }

  void SignalAll(int64_t slot, SignalKind kind, uint64_t value) const {
    for (int step = 0; step < routes.world_size(); ++step)
      routes.Signal(PeerAt(step), SignalIndex(slot, kind, routes.rank()), value);
  }
  // Waits for the ranks that take part; where late ones are masked, they are gone from `present`.
  // `waited` [ranks], if given, grows by the nanoseconds that each source let this rank wait.
  bool WaitForAll(const Exec& exec, int64_t slot, SignalKind kind, uint64_t value, int64_t deadline,
                  const char* operation, const char* missing, RankBits* present,
                  int64_t* waited = nullptr) const {
    int64_t since = waited == nullptr ? 0 : MonotonicNanoseconds();
    for (int step = 0; step < routes.world_size(); ++step) {
      const int source = PeerAt(step);
      if (!TakesPart(*present, source)) continue;
      const auto describe = [&] {
        return std::string(operation) + ", slot " + std::to_string(slot) + ": no " + missing +
               " from rank " + std::to_string(source);
      };
      const uint64_t index = SignalIndex(slot, kind, source);
      if (masks_late && source < 64 && source != routes.rank()) {
        bool late = false;
        if (!routes.WaitOrLate(exec, index, value, deadline, &late) && !late) return false;
        if (late) {
          *present &= ~BitOf(source);
          mask.fetch_or(BitOf(source), std::memory_order_relaxed);
        }
      } else if (!routes.Wait(exec, index, value, deadline, describe)) {
        return false;
      }
      if (waited == nullptr) continue;
      const int64_t now = MonotonicNanoseconds();
      waited[source] += now - since;
      since = now;
    }
    return true;
  }

  // What this rank told last of its results.
  uint64_t ToldOfResults(int64_t slot) const {
    const uint64_t index = SignalIndex(slot, SignalKind::kResults, routes.rank());
    return routes.signal(routes.rank(), index).value.load(std::memory_order_relaxed);
  }

  // False, with the stream in failure, unless the slot's newest dispatch was received: a combine
  // would answer something else. Ranks find it out alike, so nobody waits for this one.
  bool CheckReceived(const Exec& exec, int64_t slot) const {
    if (slots[slot].received == slots[slot].epoch) return true;
    FailWith(exec, DescribeNotReceived, slot);
    return false;
  }

 private:
  int64_t TableOf(int source) const {
    return source * layout.max_tokens * PaddedTopk(layout.max_topk);
  }
  uint8_t* At(int rank, int64_t slot, int64_t offset) const {
    return routes.payload(rank, static_cast<uint64_t>(slot * layout.slot_bytes + offset));
  }
};

}  // namespace moe_ep
