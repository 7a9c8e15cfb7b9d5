#include "moe_ep/quant/tensor_quant.h"

#include <algorithm>

#include "cuda/block_max.cuh"
#include "cuda/launching.cuh"
#include "cuda/quant.h"
#include "moe_ep/cuda/last_block.cuh"
#include "moe_ep/quant/group_dequant.cuh"
#include "moe_ep/quant/group_quant.cuh"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x7175616e74000001;  // of this addon
constexpr int kThreads = 256;
constexpr int kHeld = 4;  // vectors of a thread in flight

// What blocks hand on while the scale is sought; zero before and after.
struct Search {
  uint32_t largest;  // bits of the largest magnitude as f32
  uint32_t done;     // blocks
};

// Vectors of a flat tensor, and the elements behind the last whole one. Without alignment there is
// no vector, and all is rest.
struct Flat {
  int64_t vectors;
  int64_t count;
};

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    FindScale(const typename Element::Storage* x, Flat flat, Search* search, float* scale,
              const moe_ep_failure_record* record) {
  constexpr int kElements = kLoadElements<Element>;
  using Vector = LaneVector<Element, kElements>;
  StartBehindPrevious();
  // All blocks are counted, also where some see a failure that others came too early for.
  const bool stops = FailedBefore(record);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  uint32_t peak = 0;
  for (int64_t at = first; !stops && at < flat.vectors; at += stride * kHeld) {
    Vector held[kHeld];
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      const int64_t v = at + k * stride;
      held[k] = Vector::LoadIf(v < flat.vectors, x + v * kElements);
    }
    uint32_t found = held[0].PeakOf();
#pragma unroll
    for (int k = 1; k < kHeld; ++k) found = Peak<Element>::Larger(found, held[k].PeakOf());
    if (Peak<Element>::Bits(found) > Element::kInfinity) {  // a NaN, to be passed over
      found = 0;
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        found = Peak<Element>::Larger(found, held[k].NumbersPeakOf());
      }
    }
    peak = Peak<Element>::Larger(peak, found);
  }
  uint32_t largest = BitsOfFloat(Element::ToFloat(Peak<Element>::Bits(peak)));
  for (int64_t i = flat.vectors * kElements + first; !stops && i < flat.count; i += stride) {
    const uint32_t magnitude = BitsOfFloat(Element::ToFloat(x[i])) & 0x7fffffffu;
    if (magnitude <= 0x7f800000u) largest = std::max(largest, magnitude);
  }
  largest = BlockMax<kThreads>(largest);
  // Whatever the order, the largest is the same, and whoever comes last sees it.
  if (threadIdx.x == 0) atomicMax(&search->largest, largest);
  if (!IsLastBlock(&search->done) || threadIdx.x != 0) return;
  const float found = FloatOfBits(atomicExch(&search->largest, 0u));
  if (!stops) *scale = TensorScaleOf(found);
}

// `follows_search`: what is ahead is the search for the scale, which was let go when the elements
// were there already.
template <typename Element>
__global__ void __launch_bounds__(kThreads)
    QuantizeFlat(const typename Element::Storage* x, Flat flat, const float* scale, uint8_t* values,
                 bool follows_search, const moe_ep_failure_record* record) {
  constexpr int kElements = kLoadElements<Element>;
  using Vector = LaneVector<Element, kElements>;
  if (!follows_search) StartBehindPrevious();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kHeld + threadIdx.x;
  Vector held[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t v = first + k * kThreads;
    held[k] = Vector::LoadIf(v < flat.vectors, x + v * kElements);
  }
  if (follows_search) StartBehindPrevious();
  const bool failed = FailedBefore(record);
  const GroupScale made = {0.0f, 1.0f / *scale};
  if (failed) return;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t v = first + k * kThreads;
    uint32_t codes[kElements / 4];
    EncodeAny<Encoding::kMultiply>(held[k], made, codes);
    if (v < flat.vectors) StoreWords(values + v * kElements, codes);
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i =
           flat.vectors * kElements + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       i < flat.count; i += stride) {
    values[i] =
        static_cast<uint8_t>(E4M3OfFloats(Element::ToFloat(x[i]) * made.factor, 0.0f, 0.0f, 0.0f));
  }
}

template <typename Element>
__global__ void __launch_bounds__(kThreads)
    DequantizeFlat(const uint8_t* values, Flat flat, const float* scale,
                   typename Element::Storage* out, const moe_ep_failure_record* record) {
  constexpr int kElements = kLoadElements<Element>;
  StartBehindPrevious();
  const bool failed = FailedBefore(record);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kHeld + threadIdx.x;
  uint32_t codes[kHeld][kElements / 4];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t v = first + k * kThreads;
    LoadWordsIf(v < flat.vectors, values + v * kElements, codes[k]);
  }
  const float factor = *scale;
  if (failed) return;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const int64_t v = first + k * kThreads;
    const auto elements = DequantizeE4M3<Element>(codes[k], factor);
    if (v < flat.vectors) elements.Store(out + v * kElements);
  }
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i =
           flat.vectors * kElements + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       i < flat.count; i += stride) {
    out[i] = Element::FromFloat(lanes::Fp8E4M3ToFloat(values[i]) * factor);
  }
}

template <typename Element>
Flat FlatOf(int64_t count, bool aligned) {
  return {aligned ? count / kLoadElements<Element> : 0, count};
}

// One block for each kThreads * kHeld vectors, or as many elements.
dim3 GridOf(const Flat& flat) {
  const int64_t items = flat.vectors > 0 ? flat.vectors : flat.count;
  return BlocksFor(items, kThreads * kHeld);
}

}  // namespace

void QuantizePerTensor(const Exec& exec, DType dtype, const void* x, int64_t count, float* scale,
                       bool find_scale, uint8_t* values) {
  WithElement(dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* elements = static_cast<const typename Element::Storage*>(x);
    const Flat flat = FlatOf<Element>(count, Aligned16(x, values));
    if (find_scale) {
      // At least one block: a tensor without elements has a scale too.
      const int64_t blocks = std::max<int64_t>(1, GridOf(flat).x);
      LaunchBehind(exec, FindScale<Element>, GridFor(blocks, exec.device(), 8), kThreads, elements,
                   flat, exec.CudaScratch<Search>(kScratchKey, 1), scale, exec.cuda_skip());
    }
    LaunchBehind(exec, QuantizeFlat<Element>, GridOf(flat), kThreads, elements, flat, scale, values,
                 find_scale, exec.cuda_skip());
  });
}

void DequantizePerTensor(const Exec& exec, DType dtype, const uint8_t* values, const float* scale,
                         int64_t count, void* out) {
  WithElement(dtype, [&](auto element) {
    using Element = decltype(element);
    const Flat flat = FlatOf<Element>(count, Aligned16(values, out));
    LaunchBehind(exec, DequantizeFlat<Element>, GridOf(flat), kThreads, values, flat, scale,
                 static_cast<typename Element::Storage*>(out), exec.cuda_skip());
  });
}

}  // namespace moe_ep::cuda
