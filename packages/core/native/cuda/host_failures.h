// Failures that are known on the host, as records that device code can carry.
#pragma once

#include "moe_ep/abi.h"
#include "runtime/failure.h"

namespace moe_ep::cuda {

moe_ep_failure_record RecordOf(Failure failure);
// What an aborted stream says, for as long as anybody asks.
moe_ep_failure_record RecordOfAbort();
// What a record says; nothing when it has not failed.
MaybeFailure FailureOf(const moe_ep_failure_record& record);

}  // namespace moe_ep::cuda
