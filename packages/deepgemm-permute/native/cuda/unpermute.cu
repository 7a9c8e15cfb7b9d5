// Nothing may be written where a slot cannot be read, so slots are checked first: by every block
// for itself where they are few, else by a kernel of its own, which the sums wait for before they
// write anything. Sums are made in one of three ways.

#include "cuda/unpermute.h"

#include <algorithm>
#include <limits>

#include "cuda/reduced_slots.cuh"
#include "cuda/sum_few.cuh"
#include "cuda/sum_ring.cuh"
#include "moe_ep/cuda/last_block.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x756e7065726d7574;  // this file's
constexpr int64_t kFewSlots = 2048;
constexpr int kCheckThreads = 256;
constexpr int kColumnThreads = 256;

// Of rows in whole vectors.
constexpr int64_t kMostColumns = int64_t{1} << 30;
constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();

__global__ void __launch_bounds__(kCheckThreads)
    CheckKernel(const __grid_constant__ ReduceArguments a) {
  // What is ahead on the stream has ended before the sums may start: they read rows at once.
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
  // All blocks are counted, also where some see a failure that others came too early for.
  const bool stops = Failed(a.failure);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 4
  for (int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       !stops && slot < a.num_slots(); slot += step)
    if (IsBad(a, slot)) NoteBadSlot(&a.state->bad, slot);
  if (!IsLastBlock(&a.state->finished) || threadIdx.x != 0) return;
  const BadSlot bad = __ldcg(&a.state->bad);
  if (bad != 0) FailForBadSlot(a, SlotOf(bad));
  *a.state = ReduceState{};
}

// Any number of slots, any alignment: a thread a column.
template <DType in, DType out>
__global__ void __launch_bounds__(kColumnThreads)
    SumColumnsKernel(const __grid_constant__ ReduceArguments a) {
  if (!MayWrite(a)) return;
  using In = ReducedElement<in>;
  using Out = ReducedElement<out>;
  const int64_t blocks_per_token = (a.hidden + blockDim.x - 1) / blockDim.x;
  const int64_t num_blocks = a.num_tokens * blocks_per_token;
  for (int64_t block = blockIdx.x; block < num_blocks; block += gridDim.x) {
    const int64_t token = block / blocks_per_token;
    const int64_t column = block % blocks_per_token * blockDim.x + threadIdx.x;
    if (column >= a.hidden) continue;
    float sum = 0;
    for (int64_t slot = token * a.topk; slot < (token + 1) * a.topk; ++slot) {
      const Slot term = LoadSlot(a, slot);
      const int64_t row = RowOf(a, term.id, term.row);
      if (row < 0) continue;
      const auto* const from =
          reinterpret_cast<const typename In::Storage*>(a.rows + row * a.row_bytes);
      sum = AddProduct(sum, term.weight, In::Load(__ldg(from + column)));
    }
    reinterpret_cast<typename Out::Storage*>(a.out + token * a.out_row_bytes)[column] =
        Out::Store(sum);
  }
}

enum class Way { kColumns, kFew, kRing };

Way WayOf(const ReduceArguments& a, DType rows_dtype, int device) {
  const auto places = reinterpret_cast<uintptr_t>(a.rows) | reinterpret_cast<uintptr_t>(a.out) |
                      static_cast<uintptr_t>(a.row_bytes);
  if (places % 16 != 0 || a.hidden * BitsOf(rows_dtype) % 128 != 0 || a.topk > kWarp ||
      a.hidden >= kMostColumns || a.num_tokens > kMostTokens)
    return Way::kColumns;
  // Where every block has a single token, rings have nothing to run ahead to.
  const int64_t at_once = int64_t{Multiprocessors(device)} * kFewBlocks;
  return a.state == nullptr || a.num_tokens <= at_once ? Way::kFew : Way::kRing;
}

void LaunchCheck(Way way, const Exec& exec, const ReduceArguments& a) {
  // As much shared memory on the multiprocessor as the rings want, so that their blocks fit beside
  // these.
  const int carveout =
      way == Way::kRing ? cudaSharedmemCarveoutMaxShared : cudaSharedmemCarveoutDefault;
  Check(cudaFuncSetAttribute(CheckKernel, cudaFuncAttributePreferredSharedMemoryCarveout, carveout),
        "cudaFuncSetAttribute");
  Launch(CheckKernel,
         {.grid = GridFor((a.num_slots() + kCheckThreads - 1) / kCheckThreads, exec.device(), 4),
          .block = dim3(kCheckThreads),
          .overlaps_previous = true},
         exec.cuda_stream(), a);
}

template <DType in, DType out>
void LaunchSums(Way way, const Exec& exec, const ReduceArguments& a) {
  const int device = exec.device();
  const bool checked = a.state != nullptr;
  if (way == Way::kColumns) {
    const int64_t blocks = a.num_tokens * ((a.hidden + kColumnThreads - 1) / kColumnThreads);
    Launch(SumColumnsKernel<in, out>,
           {.grid = GridFor(blocks, device, 8),
            .block = dim3(kColumnThreads),
            .overlaps_previous = checked},
           exec.cuda_stream(), a);
  } else if (way == Way::kFew) {
    Launch(SumFewKernel<in, out>,
           {.grid = GridFor(a.num_tokens, device, kFewBlocks),
            .block = dim3(kFewThreads),
            .overlaps_previous = checked},
           exec.cuda_stream(), a);
  } else {
    const int64_t groups = int64_t{Multiprocessors(device)} * kRingBlocks * kRingGroups;
    const auto s = SumRingArguments::Of(a, a.hidden * 16 / kVectorElements<in>, groups);
    Launch(SumRingKernel<in, out>,
           {.grid = GridFor((s.num_batches + kRingGroups - 1) / kRingGroups, device, kRingBlocks),
            .block = dim3(kRingGroups * kGroupThreads),
            .shared_bytes = kRingGroups * s.stages * s.pieces.bytes,
            .overlaps_previous = true},
           exec.cuda_stream(), s);
  }
}

template <DType in>
void LaunchSumsTo(DType out, Way way, const Exec& exec, const ReduceArguments& a) {
  if (out == DType::kF32) return LaunchSums<in, DType::kF32>(way, exec, a);
  if (out == DType::kBF16) return LaunchSums<in, DType::kBF16>(way, exec, a);
  LaunchSums<in, DType::kF16>(way, exec, a);
}

}  // namespace

void UnpermuteAndReduce(const Exec& exec, const UnpermuteRequest& request) {
  ReduceArguments a = {};
  a.has_experts = request.experts.has_value();
  if (a.has_experts) a.experts = *request.experts;
  a.num_valid_rows = request.num_valid_rows;
  a.row_of_slot = request.row_of_slot;
  a.weights = request.weights;
  a.num_tokens = request.num_tokens;
  a.topk = request.topk;
  a.hidden = request.hidden;
  a.rows = static_cast<const uint8_t*>(request.rows);
  a.row_bytes = request.row_stride * BitsOf(request.rows_dtype) / 8;
  a.num_rows = request.num_rows;
  a.out = static_cast<uint8_t*>(request.out);
  a.out_row_bytes = request.hidden * BitsOf(request.out_dtype) / 8;
  a.describers = Describers{};
  a.failure = exec.cuda_failure();
  // Without columns there is nothing to sum, but slots are checked all the same.
  const bool checks = a.num_slots() > kFewSlots || a.hidden == 0;
  if (checks) a.state = exec.CudaScratch<ReduceState>(kScratchKey, 1);
  const Way way = WayOf(a, request.rows_dtype, exec.device());
  if (checks) LaunchCheck(way, exec, a);
  if (a.hidden == 0) return;
  if (request.rows_dtype == DType::kF32) {
    LaunchSumsTo<DType::kF32>(request.out_dtype, way, exec, a);
  } else if (request.rows_dtype == DType::kBF16) {
    LaunchSumsTo<DType::kBF16>(request.out_dtype, way, exec, a);
  } else {
    LaunchSumsTo<DType::kF16>(request.out_dtype, way, exec, a);
  }
}

}  // namespace moe_ep::cuda
