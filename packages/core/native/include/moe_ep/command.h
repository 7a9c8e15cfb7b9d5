// Turns a C++ callable into the C command that streams run.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "moe_ep/abi.h"

namespace moe_ep {

namespace detail {

// A loop whose parts may throw. What they throw is kept here and not sent through core: each addon
// has a C++ runtime of its own.
template <typename Body>
class GuardedLoop {
 public:
  explicit GuardedLoop(const Body& body) : body_(body) {}

  void Run(int64_t begin, int64_t end) noexcept {
    try {
      body_(begin, end);
    } catch (...) {
      std::lock_guard lock(mutex_);
      // The earliest part's, so that the outcome does not depend on which thread was faster.
      if (failure_ && begin > begin_of_failure_) return;
      failure_ = std::current_exception();
      begin_of_failure_ = begin;
    }
  }

  void Rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const Body& body_;
  std::mutex mutex_;
  std::exception_ptr failure_;
  int64_t begin_of_failure_ = 0;
};

}  // namespace detail

// What a running command may do.
class Exec {
 public:
  explicit Exec(moe_ep_exec* exec) : exec_(exec) {}

  // Calls body(begin, end) on the stream's threads for contiguous parts of [0, count). Bodies write
  // disjoint places, so the number of threads changes no result. When parts throw, all parts still
  // end, and one exception comes out here.
  template <typename Body>
  void ParallelFor(int64_t count, int64_t grain, const Body& body) const {
    detail::GuardedLoop<Body> loop(body);
    exec_->api->parallel_for(
        exec_, count, grain,
        [](void* self, int64_t begin, int64_t end) {
          static_cast<detail::GuardedLoop<Body>*>(self)->Run(begin, end);
        },
        &loop);
    loop.Rethrow();
  }

  // Puts the stream into failure: later work is skipped and the next await rejects with this code.
  void Fail(const char* code, const std::string& message) const {
    exec_->api->fail(exec_, code, message.c_str());
  }

  // Non-zero once the stream's owner went away.
  const uint32_t* abort_word() const { return exec_->api->abort_word(exec_); }

  // Whether the command has to launch its work instead of doing it.
  bool on_cuda() const { return exec_->device >= 0; }
  int32_t device() const { return exec_->device; }
  // A cudaStream_t.
  void* cuda_stream() const { return exec_->cuda_stream; }
  // The stream's failure record, for kernels that look at it; see moe_ep/cuda/failure.cuh.
  moe_ep_failure_record* cuda_skip() const { return exec_->failure; }
  // The same for kernels that may write it.
  moe_ep_failure_record* cuda_failure() const {
    exec_->api->cuda_may_fail(exec_);
    return exec_->failure;
  }
  // For the last kernel of a command that may fail; see SnapshotFailure of failure.cuh.
  moe_ep_failure_record* cuda_snapshot() const { return exec_->api->cuda_snapshot(exec_); }
  // Device memory for this command's launches, zeroed at first: they leave it zeroed. Throws
  // std::bad_alloc.
  template <typename T>
  T* CudaScratch(uint64_t key, int64_t count) const {
    void* memory = exec_->api->cuda_scratch(exec_, key, sizeof(T) * static_cast<uint64_t>(count));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  // Keeps a copy of `value` until the launched work is done: for host memory that it uses. Device
  // memory needs no such care.
  template <typename T>
  void KeepUntilDone(T value) const {
    exec_->api->cuda_retire(exec_, new T(std::move(value)),
                            [](void* self) { delete static_cast<T*>(self); });
  }

 private:
  moe_ep_exec* exec_;
};

template <typename Body>
moe_ep_command MakeCommand(Body body) {
  return {
      new Body(std::move(body)),
      [](void* self, moe_ep_exec* raw) {
        const Exec exec(raw);
        try {
          (*static_cast<const Body*>(self))(exec);
        } catch (const std::bad_alloc&) {
          exec.Fail("ERR_MOE_EP_OUT_OF_MEMORY", "an operation ran out of memory");
        } catch (const std::exception& error) {
          exec.Fail("ERR_MOE_EP_INTERNAL", error.what());
        } catch (...) {
          exec.Fail("ERR_MOE_EP_INTERNAL",
                    "an operation threw something that is no std::exception");
        }
      },
      [](void* self) { delete static_cast<Body*>(self); },
  };
}

// Fails the stream with the words that kernels of a cuda device would carry to the host as values.
template <typename... Values>
void FailWith(const Exec& exec, moe_ep_describe_failure describe, Values... values) {
  const int64_t all[MOE_EP_FAILURE_VALUES] = {static_cast<int64_t>(values)...};
  moe_ep_failure_text text = {};
  describe(all, &text);
  exec.Fail(text.code, text.message);
}

}  // namespace moe_ep
