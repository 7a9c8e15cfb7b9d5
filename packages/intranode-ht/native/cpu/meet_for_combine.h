// What both forms of combine share: results are put where peers read them, and ranks wait for one
// another.
#pragma once

#include "buffer.h"
#include "moe_ep/tensor.h"

namespace moe_ep::cpu {

// Copies the first `bytes` of `from` to this rank's slot unless they are there already.
void StageBytes(const Exec& exec, const uint8_t* from, uint8_t* to, int64_t bytes);

// Announces this rank's results and waits for those of all ranks, so that all go on or none does.
// False: the stream is in failure, and no result may be read.
bool MeetForCombine(const Exec& exec, const Buffer& buffer, int64_t slot,
                    const CombineArguments& arguments, uint64_t epoch, int64_t deadline);

}  // namespace moe_ep::cpu
