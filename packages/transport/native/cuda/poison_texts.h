// Words for what kernels find: their poison words name numbers only, and what the host's control
// block says is text that they cannot carry.
#pragma once

#include <cstdint>

#include "moe_ep/abi.h"
#include "moe_ep/transport/segment_layout.h"

namespace moe_ep::cuda {

// A number for the control block, which kernels report in place of its text. Numbers are never used
// again.
int64_t AddPoisonText(const ControlBlock* control);
// The block is about to be unmapped. If it was poisoned its text stays known, for a failure record
// that refers to it may be read later.
void KeepPoisonText(int64_t id);

// A moe_ep_describe_failure of {word, rank, id}: of the poison word unless that is 0, else what the
// control block of that number says.
void DescribePoison(const int64_t* values, moe_ep_failure_text* text);

}  // namespace moe_ep::cuda
