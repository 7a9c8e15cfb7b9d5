// How a rank that cannot make a call tells the others, so that they do not wait for it.
#pragma once

#include "calls.h"

namespace moe_ep::cpu {

// Takes part in the meeting of dispatch number `call`, in whatever slot the others hold it. The
// rank itself takes none: it may have none free. Ends when the refusal is told, or when all refuse.
void RefuseDispatch(const Exec& exec, const RefuseDispatchCall& call);

// Leaves the refusal where the others look for results. Waits for nobody.
void RefuseCombine(const Exec& exec, const RefuseCombineCall& call);

}  // namespace moe_ep::cpu
