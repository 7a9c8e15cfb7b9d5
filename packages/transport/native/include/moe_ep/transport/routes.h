// What operations of the dispatch families call on the cpu: put, signal, flush, wait, for peers
// whose memory is mapped. Of a table of a cuda device only addresses and poison are for the host.
//
// A Routes value keeps every mapping it refers to; capture it by value in enqueued work.
#pragma once

#include <sched.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "moe_ep/command.h"
#include "moe_ep/core.h"
#include "moe_ep/transport/poison_record.h"
#include "moe_ep/transport/route_table.h"
#include "moe_ep/transport/segment_layout.h"
#include "moe_ep/transport/signal.h"

namespace moe_ep {

class Routes {
 public:
  Routes() = default;

  // Invalid when a memory of the table was closed.
  explicit Routes(const moe_ep_route_table& table) : state_(std::make_shared<State>(table)) {
    if (!state_->valid) state_.reset();
  }

  bool valid() const { return state_ != nullptr; }
  int rank() const { return state_->table.rank; }
  int world_size() const { return state_->table.world_size; }
  bool reaches(int rank) const { return state_->bases[rank] != nullptr; }
  uint64_t payload_bytes() const { return state_->table.payload_bytes; }
  int32_t device() const { return state_->table.device; }
  // For moe_ep/transport/device_routes.cuh.
  const moe_ep_route_table& table() const { return state_->table; }

  // Where the segment of `rank` is mapped; null when it is not reached.
  uint8_t* base(int rank) const { return state_->bases[rank]; }
  // Address of a payload byte of `rank`; peers may write and read there.
  template <typename T = uint8_t>
  T* payload(int rank, uint64_t offset) const {
    return reinterpret_cast<T*>(state_->bases[rank] + state_->table.payload_offset + offset);
  }

  SignalCell& signal(int rank, uint64_t index) const {
    return reinterpret_cast<SignalCell*>(state_->bases[rank] + kControlBytes)[index];
  }

  // Copies into the payload of `rank`. Visible there to who sees a later Signal.
  void Put(int rank, uint64_t offset, const void* source, uint64_t bytes) const {
    std::memcpy(payload(rank, offset), source, bytes);
  }

  // Sets the peer's signal; everything this thread wrote before is visible to who sees it.
  void Signal(int rank, uint64_t index, uint64_t value) const {
    StoreSignal(signal(rank, index), value);
  }
  uint64_t Add(int rank, uint64_t index, int64_t delta) const {
    return AddSignal(signal(rank, index), delta);
  }

  // Puts to mapped memory are done when they return; other routes will have something to wait for.
  void Flush() const { std::atomic_thread_fence(std::memory_order_release); }

  // Waits until this rank's own signal is at least `value`. On failure (deadline, poison, closed
  // stream) the stream is put into failure and the group is poisoned. `missing` is asked only then:
  // what did not come, and from whom.
  template <typename Describe>
  bool Wait(const Exec& exec, uint64_t index, uint64_t value, int64_t deadline,
            const Describe& missing) const {
    return WaitWhile(index, value, [&] { return MayGoOn(exec, deadline, missing); });
  }

  // The same, but a deadline that passes is no failure: `late` says so then, and nobody hears of
  // it.
  bool WaitOrLate(const Exec& exec, uint64_t index, uint64_t value, int64_t deadline,
                  bool* late) const {
    return WaitWhile(index, value, [&] {
      *late = MonotonicNanoseconds() > deadline;
      return !*late && MayGoOn(exec, INT64_MAX, [] { return std::string(); });
    });
  }

  // Waits until this rank's own signal is at least `value`, or `may_go_on` says no.
  template <typename MayGoOn>
  bool WaitWhile(uint64_t index, uint64_t value, const MayGoOn& may_go_on) const {
    SignalCell& cell = signal(rank(), index);
    for (int spins = 0;; ++spins) {
      const uint64_t seen = cell.value.load(std::memory_order_acquire);
      if (seen >= value) return true;
      if (spins < state_->table.spin_iterations) {
        CpuRelax();
        continue;
      }
      if (!may_go_on()) return false;
      if (spins < state_->table.spin_iterations + kYields) {
        sched_yield();
      } else {
        SleepOnSignal(cell, seen);
      }
    }
  }

  // The same for what more than one signal can tell: asks `ready` again and again. Nobody can wake
  // it, so it is for what is not in a hurry.
  template <typename Ready, typename Describe>
  bool WaitUntil(const Exec& exec, int64_t deadline, const Ready& ready,
                 const Describe& missing) const {
    for (int asked = 0; !ready(); ++asked) {
      if (!MayGoOn(exec, deadline, missing)) return false;
      if (asked < kYields) {
        sched_yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    }
    return true;
  }

  // False, with the stream in failure, when the group was poisoned. Every collective looks before
  // it begins.
  bool CheckNotPoisoned(const Exec& exec) const {
    const PoisonRecord& poison = control(rank()).poison;
    const uint32_t state = poison.state.load(std::memory_order_acquire);
    if (state == PoisonRecord::kFine) return true;
    if (!AwaitWritten(poison)) {
      exec.Fail(kLostWriterCode, kLostWriterMessage);
      return false;
    }
    exec.Fail(poison.code, poison.message);
    return false;
  }

  // Fails this stream and tells every rank that can be reached; the first failure of a group stays
  // its cause.
  void Poison(const Exec& exec, const char* code, const std::string& message) const {
    PoisonAll(code, message);
    exec.Fail(code, message);
  }

  void PoisonAll(const char* code, const std::string& message) const {
    for (int peer = 0; peer < world_size(); ++peer) {
      if (reaches(peer)) PoisonOne(peer, code, message);
    }
  }

  void PoisonOne(int peer, const char* code, const std::string& message) const {
    PoisonRecord& poison = control(peer).poison;
    uint32_t fine = PoisonRecord::kFine;
    if (!poison.state.compare_exchange_strong(fine, PoisonRecord::kWriting,
                                              std::memory_order_acquire))
      return;
    std::strncpy(poison.code, code, sizeof(poison.code) - 1);
    std::strncpy(poison.message, message.c_str(), sizeof(poison.message) - 1);
    poison.state.store(PoisonRecord::kPoisoned, std::memory_order_release);
  }

  const PoisonRecord& own_poison() const { return control(rank()).poison; }

 private:
  static constexpr int kYields = 64;

  struct State {
    explicit State(const moe_ep_route_table& given) : table(given) {
      for (int peer = 0; peer < table.world_size; ++peer) {
        bases.push_back(table.routes[peer].base);
        controls.push_back(static_cast<ControlBlock*>(table.routes[peer].control));
      }
      for (uint64_t i = 0; i < table.num_memories; ++i) {
        moe_ep_memory* memory = table.memories[i];
        if (Core().memory_pin(memory) == nullptr) {
          valid = false;
          continue;
        }
        Core().memory_retain(memory);
        pinned.push_back(memory);
      }
    }
    ~State() {
      for (moe_ep_memory* memory : pinned) {
        Core().memory_unpin(memory);
        Core().memory_release(memory);
      }
    }
    State(const State&) = delete;
    State& operator=(const State&) = delete;

    moe_ep_route_table table;  // its routes and memories are copied to the lists here
    std::vector<uint8_t*> bases;
    std::vector<ControlBlock*> controls;
    std::vector<moe_ep_memory*> pinned;
    bool valid = true;
  };

  ControlBlock& control(int rank) const { return *state_->controls[rank]; }

  template <typename Describe>
  bool MayGoOn(const Exec& exec, int64_t deadline, const Describe& missing) const {
    if (!CheckNotPoisoned(exec)) return false;
    if (__atomic_load_n(exec.abort_word(), __ATOMIC_ACQUIRE) != 0) {
      Poison(exec, "ERR_MOE_EP_ABORTED",
             "rank " + std::to_string(rank()) + " closed its stream while it waited: " + missing());
      return false;
    }
    if (MonotonicNanoseconds() < deadline) return true;
    Poison(exec, "ERR_MOE_EP_TIMEOUT",
           "rank " + std::to_string(rank()) + ": deadline passed: " + missing());
    return false;
  }

  std::shared_ptr<State> state_;
};

// Moment at which a wait of `timeout_ms` that begins now ends; a century stands for all that is
// longer.
inline int64_t DeadlineAfter(int64_t timeout_ms) {
  constexpr int64_t kCentury = int64_t{100} * 365 * 24 * 3600 * 1000;
  return MonotonicNanoseconds() + (timeout_ms < kCentury ? timeout_ms : kCentury) * 1'000'000;
}

}  // namespace moe_ep
