// Nothing may be written where a slot cannot be read, so slots are checked first: by every block
// for itself where they are few, else by a kernel of its own, which the sums wait for before they
// write anything.

#include "cuda/unpermute.h"

#include <algorithm>

#include "cuda/bad_slot.cuh"
#include "cuda/warp.cuh"
#include "moe_ep/cuda/access.cuh"
#include "moe_ep/cuda/failure.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/deepgemm_permute/cuda/reduce_rows.cuh"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x756e7065726d7574;  // this file's
constexpr int64_t kFewSlots = 2048;
constexpr int kThreads = 128;  // that sum a token
// On a multiprocessor. More of them ask for more rows at a time than memory serves well: 8 take 12%
// longer.
constexpr int kBlocks = 4;
constexpr int kCheckThreads = 256;
constexpr int kColumnThreads = 256;

constexpr int64_t kMostColumns = int64_t{1} << 30;  // of rows in whole vectors

constexpr int64_t kNoRow = -1;
constexpr int64_t kBadRow = -2;

// Zero between commands.
struct ReduceState {
  unsigned int finished;  // blocks of the check
  BadSlot bad;
  unsigned long long claims;  // tokens taken beyond the first two of each block
};

struct ReduceArguments {
  bool has_experts;
  LocalExperts experts;
  const int64_t* num_valid_rows;
  const int32_t* row_of_slot;
  const float* weights;
  int64_t num_tokens;
  int64_t topk;
  int64_t hidden;
  const uint8_t* rows;
  int64_t row_bytes;  // from row to row
  int64_t num_rows;
  uint8_t* out;
  int64_t out_row_bytes;
  Describers describers;
  moe_ep_failure_record* failure;
  ReduceState* state;  // null: every block checks

  __host__ __device__ int64_t num_slots() const { return num_tokens * topk; }
};

// What memory says of a slot, asked for long before it is needed.
struct Slot {
  int64_t id;
  int32_t row;
  float weight;
};

__device__ __forceinline__ Slot LoadSlot(const ReduceArguments& a, int64_t slot) {
  return {.id = a.has_experts ? a.experts.Id(slot) : 0,
          .row = a.row_of_slot[slot],
          .weight = a.weights[slot]};
}

// The row that a slot adds, kNoRow, or kBadRow when its id or row is out of range.
__device__ __forceinline__ int64_t RowOf(const ReduceArguments& a, int64_t id, int32_t row) {
  if (a.has_experts) {
    const int64_t expert = a.experts.OfId(id);
    if (expert == kNoExpert) return kNoRow;
    if (expert == kInvalidExpert) return kBadRow;
  }
  if (a.num_valid_rows != nullptr && row >= __ldg(a.num_valid_rows)) return kNoRow;
  return row >= 0 && row < a.num_rows ? row : kBadRow;
}

__device__ __forceinline__ bool IsBad(const ReduceArguments& a, int64_t slot) {
  return RowOf(a, a.has_experts ? a.experts.Id(slot) : 0, a.row_of_slot[slot]) == kBadRow;
}

__device__ void FailForBadSlot(const ReduceArguments& a, int64_t slot) {
  if (a.has_experts && a.experts[slot] == kInvalidExpert)
    return FailForSlot(a.failure, a.describers, a.experts, slot, a.topk);
  Fail(a.failure, a.describers.inverse_permutation, a.num_rows, a.row_of_slot[slot], slot / a.topk,
       slot % a.topk);
}

__global__ void __launch_bounds__(kCheckThreads)
    CheckKernel(const __grid_constant__ ReduceArguments a) {
  cudaTriggerProgrammaticLaunchCompletion();
  if (Failed(a.failure)) return;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 4
  for (int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; slot < a.num_slots();
       slot += step)
    if (IsBad(a, slot)) NoteBadSlot(&a.state->bad, slot);
  __threadfence();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (atomicAdd(&a.state->finished, 1u) != gridDim.x - 1) return;
  __threadfence();
  const BadSlot bad = __ldcg(&a.state->bad);
  if (bad != 0) FailForBadSlot(a, SlotOf(bad));
  *a.state = ReduceState{};
}

// Whether sums may be written. All threads of a block call it.
__device__ bool MayWrite(const ReduceArguments& a) {
  if (a.state != nullptr) {
    cudaGridDependencySynchronize();
    return !Failed(a.failure);
  }
  __shared__ BadSlot lowest;
  if (threadIdx.x == 0) lowest = 0;
  bool bad = Failed(a.failure);
  const bool failed = bad;
  __syncthreads();
#pragma unroll 8
  for (int64_t slot = threadIdx.x; slot < a.num_slots(); slot += blockDim.x) {
    if (!IsBad(a, slot)) continue;
    NoteBadSlot(&lowest, slot);
    bad = true;
  }
  if (!__syncthreads_or(bad)) return true;
  if (blockIdx.x == 0 && threadIdx.x == 0 && !failed) FailForBadSlot(a, SlotOf(lowest));
  return false;
}

// A token's slots, a lane for each.
struct TokenSlots {
  int64_t row;  // negative: adds nothing
  float weight;
};

__device__ __forceinline__ Slot LoadSlotOfToken(const ReduceArguments& a, int64_t token) {
  if (token >= a.num_tokens || Lane() >= a.topk) return {.id = kNoExpert, .row = -1, .weight = 0};
  return LoadSlot(a, token * a.topk + Lane());
}

__device__ __forceinline__ TokenSlots Resolve(const ReduceArguments& a, const Slot& slot) {
  if (Lane() >= a.topk) return {.row = kNoRow, .weight = 0};
  return {.row = RowOf(a, slot.id, slot.row), .weight = slot.weight};
}

struct ExpertRows {
  const uint8_t* data;
  int64_t row_bytes;
};

// The rows of the lowest kRows lanes of `lanes`, which this removes.
template <int kRows>
struct Terms {
  const uint4* row[kRows];
  float weight[kRows];

  __device__ __forceinline__ Terms(const ExpertRows& rows, const TokenSlots& slots,
                                   uint32_t* lanes) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int lane = __ffs(static_cast<int>(*lanes)) - 1;
      *lanes &= *lanes - 1;
      row[r] = reinterpret_cast<const uint4*>(rows.data + __shfl_sync(kAllLanes, slots.row, lane) *
                                                              rows.row_bytes);
      weight[r] = __shfl_sync(kAllLanes, slots.weight, lane);
    }
  }
};

// Of the sums that come from a vector.
template <DType in, DType out>
constexpr int kSumBytes =
    kVectorElements<in> * static_cast<int>(sizeof(typename ReducedElement<out>::Storage));

// The sum of kRows rows: all of them, and several vectors of each, are under way at once. A
// function of its own: together in one, the cases would keep each other out of the registers.
template <DType in, DType out, int kRows>
__device__ __noinline__ void SumRows(ExpertRows rows, TokenSlots slots, uint32_t lanes, uint8_t* to,
                                     int num_vectors) {
  constexpr int kTogether = kRows > 4 ? 1 : 8 / kRows;
  constexpr int kStep = kTogether * kThreads;
  Terms<kRows> terms(rows, slots, &lanes);
  const auto thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int r = 0; r < kRows; ++r) terms.row[r] += thread;
  to += thread * kSumBytes<in, out>;
  // Addresses advance, so that those of one turn differ by constants.
#pragma unroll 1
  for (int left = num_vectors - thread; left > 0; left -= kStep) {
    uint4 vector[kTogether][kRows];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      // Past the end the last vector again, instead of a branch between the loads.
      const int offset = i * kThreads < left ? i * kThreads : left - 1;
#pragma unroll
      for (int r = 0; r < kRows; ++r) vector[i][r] = LoadOnce(terms.row[r] + offset);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (left <= i * kThreads) continue;
      float sums[kVectorElements<in>] = {};
#pragma unroll
      for (int r = 0; r < kRows; ++r) AccumulateVector<in>(sums, terms.weight[r], vector[i][r]);
      StoreSums<out>(to + i * kThreads * kSumBytes<in, out>, sums);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) terms.row[r] += kStep;
    to += kStep * kSumBytes<in, out>;
  }
}

// The sum of any number of rows, four at a time.
template <DType in, DType out>
__device__ __noinline__ void SumManyRows(ExpertRows rows, TokenSlots slots, uint32_t lanes,
                                         uint8_t* to, int num_vectors) {
  constexpr int kTogether = 4;
  // Lanes stay together: they hand each other the rows.
  for (int first = 0; first < num_vectors; first += kThreads) {
    const int v = first + static_cast<int>(threadIdx.x);
    float sums[kVectorElements<in>] = {};
    uint32_t left = lanes;
    const auto add = [&]<int kRows>() {
      const Terms<kRows> terms(rows, slots, &left);
      if (v >= num_vectors) return;
      uint4 vector[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) vector[r] = LoadOnce(terms.row[r] + v);
#pragma unroll
      for (int r = 0; r < kRows; ++r) AccumulateVector<in>(sums, terms.weight[r], vector[r]);
    };
    while (__popc(left) >= kTogether) add.template operator()<kTogether>();
    while (left != 0) add.template operator()<1>();
    if (v < num_vectors) StoreSums<out>(to + v * kSumBytes<in, out>, sums);
  }
}

template <DType in, DType out>
__device__ __forceinline__ void SumToken(const ReduceArguments& a, int64_t token,
                                         const TokenSlots& slots) {
  const uint32_t lanes = __ballot_sync(kAllLanes, slots.row >= 0);
  uint8_t* const to = a.out + token * a.out_row_bytes;
  const ExpertRows rows{.data = a.rows, .row_bytes = a.row_bytes};
  const auto num_vectors = static_cast<int>(a.hidden / kVectorElements<in>);
  switch (__popc(lanes)) {
    case 1:
      return SumRows<in, out, 1>(rows, slots, lanes, to, num_vectors);
    case 2:
      return SumRows<in, out, 2>(rows, slots, lanes, to, num_vectors);
    case 3:
      return SumRows<in, out, 3>(rows, slots, lanes, to, num_vectors);
    case 4:
      return SumRows<in, out, 4>(rows, slots, lanes, to, num_vectors);
    case 5:
      return SumRows<in, out, 5>(rows, slots, lanes, to, num_vectors);
    case 6:
      return SumRows<in, out, 6>(rows, slots, lanes, to, num_vectors);
    case 7:
      return SumRows<in, out, 7>(rows, slots, lanes, to, num_vectors);
    case 8:
      return SumRows<in, out, 8>(rows, slots, lanes, to, num_vectors);
    default:
      return SumManyRows<in, out>(rows, slots, lanes, to, num_vectors);
  }
}

// Calls for a token's rows to come closer.
__device__ __forceinline__ void PrefetchRows(const ReduceArguments& a, const TokenSlots& slots,
                                             int64_t bytes) {
  constexpr int64_t kLine = 128;
  for (uint32_t left = __ballot_sync(kAllLanes, slots.row >= 0); left != 0; left &= left - 1) {
    const int64_t row = __shfl_sync(kAllLanes, slots.row, __ffs(static_cast<int>(left)) - 1);
    const uint8_t* const from = a.rows + row * a.row_bytes;
    for (int64_t at = threadIdx.x * kLine; at < bytes; at += kThreads * kLine)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  }
}

// A block a token, and the next one whenever one is done: which block sums a token changes nothing.
// Up to 32 slots a token, rows in whole vectors.
template <DType in, DType out>
__global__ void __launch_bounds__(kThreads, kBlocks)
    SumKernel(const __grid_constant__ ReduceArguments a, bool claims) {
  __shared__ int64_t claimed[2];
  int64_t token = blockIdx.x;
  int64_t next = token + gridDim.x;
  Slot slot = LoadSlotOfToken(a, token);
  TokenSlots slots = Resolve(a, slot);
  PrefetchRows(a, slots, a.hidden * 16 / kVectorElements<in>);
  if (!MayWrite(a)) return;
  for (int turn = 0; token < a.num_tokens; turn ^= 1) {
    // What the next turn needs is asked for in this one.
    slot = LoadSlotOfToken(a, next);
    unsigned long long claim = 0;
    if (claims && threadIdx.x == 0) claim = atomicAdd(&a.state->claims, 1ull);
    SumToken<in, out>(a, token, slots);
    token = next;
    next += gridDim.x;
    if (claims) {
      if (threadIdx.x == 0) claimed[turn] = 2 * int64_t{gridDim.x} + static_cast<int64_t>(claim);
      __syncthreads();
      next = claimed[turn];
    }
    if (token < a.num_tokens) slots = Resolve(a, slot);
  }
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

template <DType in, DType out>
void LaunchSums(const Exec& exec, const ReduceArguments& a) {
  const int device = exec.device();
  const bool overlaps = a.state != nullptr;
  const auto places = reinterpret_cast<uintptr_t>(a.rows) | reinterpret_cast<uintptr_t>(a.out) |
                      static_cast<uintptr_t>(a.row_bytes);
  if (places % 16 == 0 && a.hidden % kVectorElements<in> == 0 && a.topk <= kWarp &&
      a.hidden < kMostColumns) {
    const dim3 grid = GridFor(a.num_tokens, device, kBlocks);
    const bool claims = a.state != nullptr && a.num_tokens > 2 * int64_t{grid.x};
    Launch(SumKernel<in, out>,
           {.grid = grid, .block = dim3(kThreads), .overlaps_previous = overlaps},
           exec.cuda_stream(), a, claims);
  } else {
    const int64_t blocks = a.num_tokens * ((a.hidden + kColumnThreads - 1) / kColumnThreads);
    Launch(SumColumnsKernel<in, out>,
           {.grid = GridFor(blocks, device, 8),
            .block = dim3(kColumnThreads),
            .overlaps_previous = overlaps},
           exec.cuda_stream(), a);
  }
}

template <DType in>
void LaunchSumsTo(DType out, const Exec& exec, const ReduceArguments& a) {
  if (out == DType::kF32) return LaunchSums<in, DType::kF32>(exec, a);
  if (out == DType::kBF16) return LaunchSums<in, DType::kBF16>(exec, a);
  LaunchSums<in, DType::kF16>(exec, a);
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
  if (a.num_slots() > kFewSlots || a.hidden == 0) {
    a.state = exec.CudaScratch<ReduceState>(kScratchKey, 1);
    Launch(CheckKernel,
           {.grid = GridFor((a.num_slots() + kCheckThreads - 1) / kCheckThreads, exec.device(), 4),
            .block = dim3(kCheckThreads)},
           exec.cuda_stream(), a);
  }
  if (a.hidden == 0) return;
  if (request.rows_dtype == DType::kF32) {
    LaunchSumsTo<DType::kF32>(request.out_dtype, exec, a);
  } else if (request.rows_dtype == DType::kBF16) {
    LaunchSumsTo<DType::kBF16>(request.out_dtype, exec, a);
  } else {
    LaunchSumsTo<DType::kF16>(request.out_dtype, exec, a);
  }
}

}  // namespace moe_ep::cuda
