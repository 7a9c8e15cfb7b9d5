// Turns a C++ callable into the C command that streams run.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#include "moe_ep/abi.h"

namespace moe_ep {

// What a running command may do.
class Exec {
 public:
  explicit Exec(moe_ep_exec* exec) : exec_(exec) {}

  // Calls body(begin, end) on the stream's threads for contiguous parts of [0, count). Bodies write disjoint places, so
  // the number of threads changes no result.
  template <typename Body>
  void ParallelFor(int64_t count, int64_t grain, const Body& body) const {
    exec_->api->parallel_for(
        exec_, count, grain,
        [](void* self, int64_t begin, int64_t end) { (*static_cast<const Body*>(self))(begin, end); },
        const_cast<Body*>(&body));
  }

  // Puts the stream into failure: later work is skipped and the next await rejects with this code.
  void Fail(const char* code, const std::string& message) const { exec_->api->fail(exec_, code, message.c_str()); }

  // Non-zero once the stream's owner went away.
  const uint32_t* abort_word() const { return exec_->api->abort_word(exec_); }

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
        } catch (const std::exception& error) {
          exec.Fail("ERR_MOE_EP_INTERNAL", error.what());
        }
      },
      [](void* self) { delete static_cast<Body*>(self); },
  };
}

}  // namespace moe_ep
