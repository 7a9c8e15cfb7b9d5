// Scales that travel with rows into the layout, whatever way they lie there.
#pragma once

#include <cstdint>

#include "moe_ep/command.h"
#include "requests.h"

namespace moe_ep::cpu {

// Row r of the output becomes the row of token_of_row[r]; where that is -1 it becomes zero or,
// without `zero_padding`, stays what it was.
void MoveScales(const Exec& exec, const ScaleMove& move, const int32_t* token_of_row,
                int64_t num_rows, bool zero_padding);

}  // namespace moe_ep::cpu
