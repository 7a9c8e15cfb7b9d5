// The words of what ranks find out together. Kernels only carry the numbers.
#pragma once

#include <cstdint>
#include <string>

#include "moe_ep/abi.h"

namespace moe_ep {

// Values: field of SharedArguments, what the first rank passed, what the other passed, the other,
// the first.
void DescribeMismatch(const int64_t* values, moe_ep_failure_text* text);
// Of ranks that agree on a mask. Values: the rank that others have masked.
void DescribeMaskedOut(const int64_t* values, moe_ep_failure_text* text);
// Values: source, token, id, number of experts.
void DescribeInvalidId(const int64_t* values, moe_ep_failure_text* text);
// Of a combine, whose ids only this rank looks at. Values as before.
void DescribeCombineId(const int64_t* values, moe_ep_failure_text* text);
// Of a combine. Values: what the first rank sent, what the other sent, the other, the first.
void DescribeEncodings(const int64_t* values, moe_ep_failure_text* text);
// Values: the rank that refused, the number of its error's code.
void DescribeDispatchRefusal(const int64_t* values, moe_ep_failure_text* text);
void DescribeCombineRefusal(const int64_t* values, moe_ep_failure_text* text);
// Values: slot.
void DescribeNotReceived(const int64_t* values, moe_ep_failure_text* text);

// An error's code as it travels to other ranks, to which a note of a signal has no room for words:
// a number above 0, the same on all ranks.
int64_t RefusalNumber(const std::string& code);

}  // namespace moe_ep
