// A control block in memory of the host that kernels of a device look at, too.
#pragma once

#include <cstdint>

#include "moe_ep/transport/segment_layout.h"

namespace moe_ep::cuda {

struct HostControl {
  const uint32_t* poison;  // the state of the block's poison record, as the device sees it
  int64_t poison_id;       // of its text, see poison_texts.h
};

// `control` is a page of its own. Throws.
HostControl RegisterControl(int device, ControlBlock* control);
// When no kernel looks at it any more and before it is unmapped.
void UnregisterControl(int device, ControlBlock* control, int64_t poison_id);

}  // namespace moe_ep::cuda
