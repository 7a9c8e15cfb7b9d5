// The operations on the cuda device: each launches its kernels on the command's stream. Only where
// the addon is built with CUDA.
#pragma once

#include <cstdint>

#include "moe_ep/command.h"
#include "moe_ep/quant/scales.h"
#include "moe_ep/quant/small_groups.h"
#include "operands.h"

namespace moe_ep::cuda {

// Matrices of a batch, one after the other; the first counts[b] rows of each are in use, or all.
struct MaskedBatch {
  int64_t batch;
  int64_t rows;
  const int32_t* counts;     // null: all rows
  int64_t scale_stride = 0;  // bytes from one matrix's scales to the next one's

  // Counts outside [0, rows] are taken as the nearest of these.
  MOE_EP_LANE int64_t RowsOf(int64_t matrix) const {
    if (counts == nullptr) return rows;
    const int64_t count = counts[matrix];
    return count < 0 ? 0 : count > rows ? rows : count;
  }
};

void QuantizePerTokenGroup(const Exec& exec, const GroupQuantMatrix& matrix, int64_t rows,
                           ScaleRule rule);
void DequantizePerTokenGroup(const Exec& exec, const GroupQuantMatrix& matrix, int64_t rows);

void SiluMul(const Exec& exec, const GatedMatrix& matrix, const MaskedBatch& batch, void* out);
// `quantized` and `matrix` are the batch's first.
void SiluMulQuantize(const Exec& exec, const GatedMatrix& matrix, const MaskedBatch& batch,
                     const GroupQuantMatrix& quantized, ScaleRule rule);

void QuantizeBlock(const Exec& exec, const BlockQuantMatrices& matrices, int64_t batch,
                   bool power_of_two);
void DequantizeBlock(const Exec& exec, const BlockQuantMatrices& matrices, int64_t batch);

// `scale` is written where it is to be found.
void QuantizePerTensor(const Exec& exec, DType dtype, const void* x, int64_t count, float* scale,
                       bool find_scale, uint8_t* values);
void DequantizePerTensor(const Exec& exec, DType dtype, const uint8_t* values, const float* scale,
                         int64_t count, void* out);

void QuantizeMx(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows, MxScaleRule rule);
void DequantizeMx(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows);
// Swizzled scales that no group has are zeroed.
void QuantizeNvfp4(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows,
                   const float* global);
void DequantizeNvfp4(const Exec& exec, const SmallGroupMatrix& matrix, int64_t rows,
                     const float* global);

void QuantizeLogFmt10(const Exec& exec, const LogFmtMatrix& matrix, int64_t rows);
void DequantizeLogFmt10(const Exec& exec, const LogFmtMatrix& matrix, int64_t rows);

}  // namespace moe_ep::cuda
