// How a rank that cannot make a call tells the others, so that they do not wait for it.
#pragma once

#include <memory>

#include "cpu/buffer.h"

namespace moe_ep::cpu {

struct RefuseDispatchCall {
  std::shared_ptr<Buffer> buffer;
  int64_t call;
  Refusal refusal;
  int64_t timeout_ms;
};

// Takes part in the meeting of dispatch number `call`, in whatever slot the others hold it. The
// rank itself takes none: it may have none free. Ends when the refusal is told, or when all refuse.
void RefuseDispatch(const Exec& exec, const RefuseDispatchCall& call);

struct RefuseCombineCall {
  std::shared_ptr<Buffer> buffer;
  int64_t slot;
  Refusal refusal;
};

// Leaves the refusal where the others look for results. Waits for nobody.
void RefuseCombine(const Exec& exec, const RefuseCombineCall& call);

}  // namespace moe_ep::cpu
