// Refusals that kernels found: their words do not fit a failure record, so kernels copy them to
// host memory that stays.
#pragma once

#include "moe_ep/abi.h"
#include "protocol.h"

namespace moe_ep::cuda {

struct RefusalText {
  int64_t rank;  // that refused
  Refusal refusal;
};

// A place for one failing call on the current device, in memory that host and device see. Places
// are used again after many more failures.
RefusalText* NextRefusalText();

// Values: a RefusalText*, whether it was a combine.
void DescribeRefusal(const int64_t* values, moe_ep_failure_text* text);

}  // namespace moe_ep::cuda
