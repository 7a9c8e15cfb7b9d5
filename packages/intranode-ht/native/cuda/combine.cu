// Brings results home in two steps: ranks meet, then each pulls the rows of its tokens and sums
// them in f32, in rank order.
//
// A warp sums pieces of rows. Its loads run ahead of its sums, across pieces, through a ring of
// stages in shared memory: links are busy while sums are made.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/meeting.cuh"
#include "cuda/row_pieces.cuh"
#include "moe_ep/cuda/access.cuh"
#include "moe_ep/cuda/bulk_copy.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/deepgemm_permute/cuda/reduce_rows.cuh"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x636f6d62696e6521;  // this file's
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;
constexpr int kDefaultBlocks = 16;
constexpr int kStageThreads = 512;
constexpr int kVectorBytes = 16 * kLanes;  // what a warp reads at once

// Copies what experts left elsewhere to where peers read it. `counts`: their sum is the rows that
// are there.
struct StageArguments {
  const uint4* from;
  uint4* to;
  int64_t vectors_per_row;
  const int32_t* counts;
  int64_t num_counts;
  moe_ep_failure_record* failure;
};

__global__ void __launch_bounds__(kStageThreads)
    StageKernel(const __grid_constant__ StageArguments a) {
  if (Failed(a.failure)) return;
  int64_t rows = 0;
  for (int64_t i = 0; i < a.num_counts; ++i) rows += a.counts[i];
  const int64_t count = rows * a.vectors_per_row;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    a.to[i] = LoadOnce(a.from + i);
}

// The same for weights, which are not whole vectors.
__global__ void __launch_bounds__(kStageThreads)
    StageWeightsKernel(const float* from, float* to, int64_t topk, const int32_t* rows,
                       const moe_ep_failure_record* failure) {
  if (Failed(failure)) return;
  const int64_t count = *rows * topk;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = from[i];
}

struct MeetArguments {
  DeviceBuffer buffer;
  CombineArguments shared;
  Patience patience;
  Reporting reporting;
};

// Announces this rank's results and waits for those of all ranks, so that all go on or none does.
// One warp.
__global__ void MeetKernel(const __grid_constant__ MeetArguments a) {
  if (Failed(a.patience.failure)) return;
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const auto lane = static_cast<int>(threadIdx.x);
  const bool ok = lane != 0 || CheckNotPoisoned(buffer.routes, a.patience.failure);
  if (!__all_sync(kAllLanes, ok)) return;
  const uint64_t epoch = buffer.Epochs().combine + 1;
  __syncwarp();
  if (lane == 0) {
    buffer.Epochs().combine = epoch;
    CombineHead& head = buffer.CombineHeadOf(buffer.rank());
    head.arguments = a.shared;
    head.refusal.Clear();
    __threadfence_system();
  }
  __syncwarp();
  SignalAll(buffer, SignalKind::kCombineReady, epoch, lane);
  if (!WaitForAll(buffer, a.patience, begin_ns, SignalKind::kCombineReady, epoch,
                  Operation::kIntranodeCombine, Missing::kResults, lane))
    return;
  CombineArguments mine = a.shared;
  bool refused = false;
  if (lane < buffer.ranks()) {
    const CombineHead& head = buffer.CombineHeadOf(lane);
    mine = head.arguments;
    refused = head.refusal.given();
  }
  const CombineArguments first = {__shfl_sync(kAllLanes, mine.columns, 0),
                                  __shfl_sync(kAllLanes, mine.dtype, 0),
                                  __shfl_sync(kAllLanes, mine.topk, 0)};
  const bool other =
      lane < buffer.ranks() &&
      (mine.columns != first.columns || mine.dtype != first.dtype || mine.topk != first.topk);
  const uint32_t refusing = __ballot_sync(kAllLanes, refused);
  const uint32_t different = __ballot_sync(kAllLanes, other);
  if (refusing == 0 && different == 0) return;
  const int culprit = __ffs(static_cast<int>(refusing != 0 ? refusing : different)) - 1;
  if (lane == culprit) {
    if (refusing != 0) {
      FailWithRefusal(a.reporting, buffer.CombineHeadOf(lane).refusal, lane, true,
                      a.patience.failure);
    } else {
      Fail(a.patience.failure, a.reporting.combine_mismatch, first.columns, first.dtype, first.topk,
           static_cast<int64_t>(lane) << 32 | mine.columns, mine.dtype << 32 | mine.topk);
    }
  }
  __syncwarp();
  // Nobody reads what was refused: the slot may be filled again.
  SignalAll(buffer, SignalKind::kCombineRead, epoch, lane);
}

struct SumArguments {
  DeviceBuffer buffer;
  ExpertPlacement placement;  // of grouped rows
  RowPieces pieces;
  int64_t tokens;
  TopkIds ids;  // of grouped rows
  int64_t topk;
  const float* weights;          // [T, K] of this rank's tokens; of grouped rows
  const int32_t* rows_of_token;  // as in send.cu
  const uint8_t* bias[2];
  uint8_t* out;
  float* out_weights;  // [T, out_topk], or null
  int64_t out_topk;
  unsigned int* arrived;
  moe_ep_failure_record* failure;
};

// The rows that stand for a token, a lane each, in the order in which they are added.
struct Terms {
  const uint8_t* row;  // in its rank's memory
  float weight;
  bool first_of_rank;
  int count;
};

// Rows of one place a token: one of each rank.
__device__ __forceinline__ Terms PlainTerms(const SumArguments& a, int64_t token, int lane) {
  int32_t row = -1;
  if (token < a.tokens && lane < a.buffer.ranks())
    row = a.rows_of_token[token * a.buffer.ranks() + lane];
  const uint32_t lanes = __ballot_sync(kAllLanes, row >= 0);
  const int count = __popc(lanes);
  // The lane of the n-th row.
  const int from = lane < count ? __fns(lanes, 0, lane + 1) : 0;
  const int32_t my_row = __shfl_sync(kAllLanes, row, from);
  return {a.buffer.Rows(from) + my_row * a.pieces.row_bytes, 1.0f, true, count};
}

// Grouped rows: by rank, then slot.
__device__ __forceinline__ Terms GroupedTerms(const SumArguments& a, int64_t token, int lane) {
  int32_t row = -1;
  int rank = kMostRanks;
  float weight = 0.0f;
  if (token < a.tokens && lane < a.topk) {
    const int64_t slot = token * a.topk + lane;
    row = a.rows_of_token[slot];
    weight = a.weights[slot];
    if (row >= 0) rank = static_cast<int>(a.placement.RankOf(a.ids[slot]));
  }
  const int count = __popc(__ballot_sync(kAllLanes, row >= 0));
  int place = 0;  // among the token's rows
  for (int other = 0; other < kLanes; ++other) {
    const int other_rank = __shfl_sync(kAllLanes, rank, other);
    place += other_rank < rank || (other_rank == rank && other < lane);
  }
  // The lane whose place is this lane's number.
  int from = 0;
  for (int other = 0; other < kLanes; ++other) {
    if (__shfl_sync(kAllLanes, place, other) == lane) from = other;
  }
  const int my_rank = __shfl_sync(kAllLanes, rank, from);
  const int32_t my_row = __shfl_sync(kAllLanes, row, from);
  const float my_weight = __shfl_sync(kAllLanes, weight, from);
  const int rank_before = __shfl_up_sync(kAllLanes, my_rank, 1);
  const bool there = lane < count;
  return {a.buffer.Rows(there ? my_rank : 0) + (there ? my_row : 0) * a.pieces.row_bytes, my_weight,
          lane == 0 || rank_before != my_rank, count};
}

template <bool kGrouped>
__device__ __forceinline__ Terms TermsOf(const SumArguments& a, int64_t token, int lane) {
  return kGrouped ? GroupedTerms(a, token, lane) : PlainTerms(a, token, lane);
}

// Asks for pieces, one row after the other, as stages become free.
template <bool kGrouped, int kStages>
struct Loader {
  const SumArguments& a;
  uint8_t* stages;
  uint64_t* full;
  int64_t item;
  int64_t step;
  int lane;
  Piece piece = {};
  Terms terms = {};
  int next = 0;  // term
  int stage = 0;

  __device__ void Begin() {
    if (item >= a.tokens * a.pieces.count) return;
    piece = a.pieces.PieceOf(item);
    terms = TermsOf<kGrouped>(a, piece.row, lane);
    next = 0;
  }

  // A warp calls it. Does nothing at the end.
  __device__ void LoadNext() {
    const int64_t items = a.tokens * a.pieces.count;
    while (item < items && next == terms.count) {
      item += step;
      Begin();
    }
    if (item >= items) return;
    const uint64_t row = __shfl_sync(kAllLanes, reinterpret_cast<uint64_t>(terms.row), next);
    if (lane == 0) {
      ArriveExpecting(&full[stage], piece.bytes);
      BulkLoad(stages + stage * a.pieces.bytes,
               reinterpret_cast<const uint8_t*>(row) + piece.offset, piece.bytes, &full[stage]);
    }
    ++next;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
};

// Rounds sums as they would be stored, and reads them again.
template <DType dtype, int kCount>
__device__ __forceinline__ void Round(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    using Element = ReducedElement<dtype>;
    sums[i] = Element::Load(Element::Store(sums[i]));
  }
}

template <DType dtype, bool kGrouped, int kVectors, int kStages>
__global__ void __launch_bounds__(kThreads, 1) SumKernel(const __grid_constant__ SumArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ uint64_t full_of_warps[kWarps][kStages];
  constexpr int kElements = kVectorElements<dtype>;
  if (Failed(a.failure)) return;
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  if (threadIdx.x < kWarps * kStages) InitBarrier(&full_of_warps[0][0] + threadIdx.x, 1);
  FenceBarriers();
  __syncthreads();
  uint64_t* const full = full_of_warps[warp];
  uint8_t* const stages = shared + warp * kStages * a.pieces.bytes;
  const int64_t items = a.tokens * a.pieces.count;
  const int64_t first = int64_t{warp} * gridDim.x + blockIdx.x;
  const int64_t step = int64_t{gridDim.x} * kWarps;
  Loader<kGrouped, kStages> loader{a, stages, full, first, step, lane};
  loader.Begin();
  for (int i = 0; i < kStages; ++i) loader.LoadNext();

  int stage = 0;
  uint32_t parity = 0;
  for (int64_t item = first; item < items; item += step) {
    const Piece piece = a.pieces.PieceOf(item);
    const Terms terms = TermsOf<kGrouped>(a, piece.row, lane);
    const int vectors =
        (static_cast<int>(piece.bytes) - lane * 16 + kVectorBytes - 1) / kVectorBytes;
    float sums[kVectors][kElements];
    float partial[kGrouped ? kVectors : 1][kElements];
    // Adding to -0 gives what is added, whatever it is; no rows at all are +0.
    const float start = terms.count > 0 ? -0.0f : 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
#pragma unroll
      for (int i = 0; i < kElements; ++i) sums[v][i] = start;
    for (int term = 0; term < terms.count; ++term) {
      const float weight = __shfl_sync(kAllLanes, terms.weight, term);
      WaitBarrier(&full[stage], parity);
      const auto* row = reinterpret_cast<const uint4*>(stages + stage * a.pieces.bytes) + lane;
      if constexpr (kGrouped) {
        if (__shfl_sync(kAllLanes, terms.first_of_rank, term)) {
#pragma unroll
          for (int v = 0; v < kVectors; ++v)
#pragma unroll
            for (int i = 0; i < kElements; ++i) partial[v][i] = 0.0f;
        }
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (v >= vectors) continue;
        AccumulateVector<dtype>(kGrouped ? partial[v] : sums[v], weight, row[v * kLanes]);
      }
      if constexpr (kGrouped) {
        // What a rank's rows add up to is rounded, as an unpermute would leave it.
        const bool last =
            term + 1 == terms.count || __shfl_sync(kAllLanes, terms.first_of_rank, term + 1);
        if (last) {
#pragma unroll
          for (int v = 0; v < kVectors; ++v) {
            Round<dtype>(partial[v]);
#pragma unroll
            for (int i = 0; i < kElements; ++i) sums[v][i] = __fadd_rn(sums[v][i], partial[v][i]);
          }
        }
      }
      __syncwarp();
      loader.LoadNext();
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
    const int64_t offset = piece.row * a.pieces.row_bytes + piece.offset + lane * 16;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v >= vectors) continue;
      for (const uint8_t* bias : a.bias) {
        if (bias == nullptr) continue;
        AccumulateVector<dtype>(sums[v], 1.0f, LoadOnce(bias + offset + v * kVectorBytes));
      }
      StoreSums<dtype>(a.out + offset + v * kVectorBytes, sums[v]);
    }
    if (kGrouped || a.out_weights == nullptr || piece.offset != 0) continue;
    // The same sum for the weights that each rank gives back.
    float sum = start;
    for (int rank = 0; rank < a.buffer.ranks(); ++rank) {
      const int32_t row = a.rows_of_token[piece.row * a.buffer.ranks() + rank];
      if (row < 0 || lane >= a.out_topk) continue;
      sum = __fadd_rn(sum, a.buffer.TopkWeights(rank)[row * a.out_topk + lane]);
    }
    if (lane < a.out_topk)
      reinterpret_cast<uint32_t*>(a.out_weights)[piece.row * a.out_topk + lane] =
          CanonicalF32Bits(sum);
  }
  if (!IsLastBlock(a.arrived) || warp != 0) return;
  SignalAll(a.buffer, SignalKind::kCombineRead, a.buffer.Epochs().combine, lane);
}

template <DType dtype, bool kGrouped>
void LaunchSum(const Exec& exec, SumArguments a, int64_t row_bytes, int64_t blocks) {
  // Grouped rows have two sums a place, so their pieces are half as long.
  constexpr int kVectors = kGrouped ? 4 : 8;
  constexpr int kStages = kGrouped ? 12 : 6;
  a.pieces = RowPieces::Of(row_bytes, kVectors * kVectorBytes, kVectorBytes);
  const int64_t wanted = blocks > 0 ? blocks : kDefaultBlocks;
  const int64_t useful = std::max<int64_t>(1, (a.tokens * a.pieces.count + kWarps - 1) / kWarps);
  const int64_t grid = std::min<int64_t>({wanted, useful, Multiprocessors(exec.device())});
  Launch(SumKernel<dtype, kGrouped, kVectors, kStages>,
         {.grid = dim3(static_cast<unsigned>(grid)),
          .block = kThreads,
          .shared_bytes = kWarps * kStages * a.pieces.bytes},
         exec.cuda_stream(), a);
}

template <bool kGrouped>
void LaunchSumOf(const Exec& exec, DType dtype, SumArguments a, int64_t row_bytes, int64_t blocks) {
  a.arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1);
  switch (dtype) {
    case DType::kBF16:
      return LaunchSum<DType::kBF16, kGrouped>(exec, a, row_bytes, blocks);
    case DType::kF16:
      return LaunchSum<DType::kF16, kGrouped>(exec, a, row_bytes, blocks);
    default:
      return LaunchSum<DType::kF32, kGrouped>(exec, a, row_bytes, blocks);
  }
}

// `counts`: their sum is the rows that peers may ask for; inputs of worst-case size have more.
void Stage(const Exec& exec, const Tensor& x, uint8_t* to, int64_t row_bytes, const int32_t* counts,
           int64_t num_counts) {
  if (x.data<uint8_t>() == to) return;
  const StageArguments a = {reinterpret_cast<const uint4*>(x.data()),
                            reinterpret_cast<uint4*>(to),
                            row_bytes / 16,
                            counts,
                            num_counts,
                            exec.cuda_skip()};
  Launch(StageKernel,
         {.grid = GridFor((x.size(0) * row_bytes / 16 + kStageThreads - 1) / kStageThreads,
                          exec.device(), 4),
          .block = kStageThreads},
         exec.cuda_stream(), a);
}

void Meet(const Exec& exec, const Buffer& buffer, int64_t slot, const CombineArguments& shared,
          int64_t timeout_ms) {
  const MeetArguments a = {ToDevice(buffer, slot), shared, PatienceOf(exec, timeout_ms),
                           MakeReporting()};
  Launch(MeetKernel, {.grid = 1, .block = kLanes}, exec.cuda_stream(), a);
}

}  // namespace

void Combine(const Exec& exec, const CombineCall& call) {
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int rank = buffer.routes.rank();
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  const int32_t* const rows =
      call.rank_prefix_matrix.data<int32_t>() + int64_t{ranks - 1} * ranks + rank;
  Stage(exec, call.x, buffer.Rows(rank, call.slot), row_bytes, rows, 1);
  const int64_t topk = call.topk_weights ? call.topk_weights.size(1) : 0;
  float* const weights = buffer.TopkWeights(rank, call.slot);
  if (call.topk_weights && call.topk_weights.data<float>() != weights) {
    Launch(StageWeightsKernel,
           {.grid = GridFor((call.topk_weights.numel() + kStageThreads - 1) / kStageThreads,
                            exec.device(), 1),
            .block = kStageThreads},
           exec.cuda_stream(), call.topk_weights.data<float>(), weights, topk, rows,
           exec.cuda_skip());
  }
  Meet(exec, buffer, call.slot, {call.x.size(1), static_cast<int64_t>(call.x.dtype()), topk},
       call.timeout_ms);
  LaunchSumOf<false>(exec, call.out.dtype(),
                     {
                         .buffer = ToDevice(buffer, call.slot),
                         .placement = {1, ranks},
                         .pieces = {},
                         .tokens = call.out.size(0),
                         .ids = TopkIds(Tensor()),
                         .topk = 0,
                         .weights = nullptr,
                         .rows_of_token = call.send_head.data<int32_t>(),
                         .bias = {call.bias[0].data<uint8_t>(), call.bias[1].data<uint8_t>()},
                         .out = call.out.data<uint8_t>(),
                         .out_weights = call.out_topk_weights.data<float>(),
                         .out_topk = topk,
                         .arrived = nullptr,
                         .failure = exec.cuda_skip(),
                     },
                     row_bytes, call.sms);
}

void CombineGrouped(const Exec& exec, const CombineGroupedCall& call) {
  const Buffer& buffer = *call.buffer;
  const int64_t row_bytes = call.x.size(1) * BitsOf(call.x.dtype()) / 8;
  Stage(exec, call.x, buffer.Rows(buffer.routes.rank(), call.slot), row_bytes,
        call.num_recv_tokens_per_expert.data<int32_t>(), call.num_recv_tokens_per_expert.numel());
  Meet(exec, buffer, call.slot, {call.x.size(1), static_cast<int64_t>(call.x.dtype()), 0},
       call.timeout_ms);
  LaunchSumOf<true>(exec, call.out.dtype(),
                    {
                        .buffer = ToDevice(buffer, call.slot),
                        .placement = {call.experts, buffer.routes.world_size()},
                        .pieces = {},
                        .tokens = call.out.size(0),
                        .ids = TopkIds(call.topk_idx),
                        .topk = call.topk_idx.size(1),
                        .weights = call.topk_weights.data<float>(),
                        .rows_of_token = call.slot_row.data<int32_t>(),
                        .bias = {},
                        .out = call.out.data<uint8_t>(),
                        .out_weights = nullptr,
                        .out_topk = 0,
                        .arrived = nullptr,
                        .failure = exec.cuda_skip(),
                    },
                    row_bytes, call.sms);
}

void CopyBytes(const Exec& exec, const void* from, void* to, int64_t bytes) {
  if (bytes == 0 || from == to) return;
  Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                        static_cast<cudaStream_t>(exec.cuda_stream())),
        "cudaMemcpyAsync");
}

}  // namespace moe_ep::cuda
