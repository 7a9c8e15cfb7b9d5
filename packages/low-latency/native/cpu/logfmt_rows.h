// Results as LogFMT-10 on the cpu: encoded where experts are, decoded at home before the sum.
#pragma once

#include <cstdint>

#include "cpu/weighted_sum.h"

namespace moe_ep::cpu {

// Writes a row of bf16 as a result: codes, then ranges.
void EncodeLogRow(const uint16_t* x, int64_t hidden, void* result);

// SumRows of rows that are such results, in f32: products with weights (1: the numbers themselves)
// and additions in order, rounded once to bf16.
void SumLogRows(const Term* terms, int64_t count, int64_t columns, uint16_t* out);

}  // namespace moe_ep::cpu
