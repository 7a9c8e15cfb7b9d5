// The send phase of dispatch: a block casts a token's row once into shared memory and writes it,
// behind a header for each rank, to all ranks that have one of its experts.
#include <algorithm>

#include "cuda/device_buffer.cuh"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/layout/placement.h"
#include "moe_ep/layout/topk_ids.h"
#include "moe_ep/quant/group_quant.cuh"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x6c6c73656e643031;  // this file's
constexpr int kMostTokens = 1024;
constexpr int kItems = 4;  // vectors of a lane that are cast together

struct SendArguments {
  DeviceBuffer buffer;
  SharedArguments shared;
  ExpertPlacement placement;
  int64_t tokens;
  const uint16_t* x;
  TopkIds ids;
  const float* weights;  // or null
  unsigned int* arrived;
  Patience patience;
  moe_ep_failure_record* snapshot;
};

// Which ranks every token goes to, a bit each.
struct Destinations {
  uint32_t ranks[kMostTokens];
  unsigned long long invalid;  // place of the first id that is no expert's, or all ones
};

// All threads of the block call it.
__device__ void FindDestinations(const SendArguments& a, Destinations* d) {
  if (threadIdx.x == 0) d->invalid = ~0ull;
  __syncthreads();
  const int64_t topk = a.shared.topk;
  for (int64_t token = threadIdx.x; token < a.tokens; token += kThreads) {
    uint32_t ranks = 0;
    for (int64_t slot = 0; slot < topk; ++slot) {
      const int64_t id = a.ids[token * topk + slot];
      if (IsInvalidId(id, a.shared.experts)) {
        atomicMin(&d->invalid, static_cast<unsigned long long>(token * topk + slot));
      } else if (id >= 0) {
        ranks |= 1u << a.placement.RankOf(id);
      }
    }
    d->ranks[token] = ranks;
  }
  __syncthreads();
}

// Tokens before `token` that go to `rank`: which of that rank's messages this one is.
__device__ int MessageIndex(const Destinations& d, int64_t token, int rank) {
  int count = 0;
  for (int64_t before = 0; before < token; ++before) count += (d.ranks[before] >> rank) & 1u;
  return count;
}

// The header for the rank with the warp's number. A warp calls it.
__device__ void PutHeader(const SendArguments& a, int64_t token, uint32_t ranks, int rank,
                          uint8_t* to) {
  const int lane = threadIdx.x % kLanes;
  const int64_t topk = a.shared.topk;
  const int64_t begin = a.placement.BeginOf(rank);
  const int64_t id = lane < topk ? a.ids[token * topk + lane] : -1;
  const bool local = id >= begin && id < begin + a.placement.CountOf(rank);
  const uint32_t locals = __ballot_sync(kAllLanes, local);
  auto* const header = reinterpret_cast<MessageHeader*>(to);
  if (lane == 0)
    *header = {static_cast<int32_t>(token), __popc(locals), __popc(ranks & ((1u << rank) - 1u)), 0};
  if (!local) return;
  const float weight = a.weights != nullptr ? a.weights[token * topk + lane] : 0.0f;
  header->selections()[__popc(locals & ((1u << lane) - 1u))] = {static_cast<int32_t>(id - begin),
                                                                static_cast<int32_t>(lane), weight};
}

// Codes and scales of a row, by all warps of the block.
__device__ void CastRow(const SendArguments& a, const uint16_t* x, uint8_t* row) {
  using Vector = LaneVector<BF16Element, 8>;
  using Warp = WarpItems<kGroupSize / 8, kItems>;
  constexpr int64_t kItemElements = kLanes * 8;
  const ScaleRule rule = {GroupNumerics::kDeepEp,
                          a.shared.format == static_cast<int64_t>(RowFormat::kFp8PowerOfTwo)};
  const int64_t hidden = a.shared.hidden;
  auto* const scales = reinterpret_cast<float*>(row + (hidden + 3) / 4 * 4);
  const int lane = threadIdx.x % kLanes;
  for (int64_t first = threadIdx.x / kLanes * kItems * kItemElements; first < hidden;
       first += kWarps * kItems * kItemElements) {
    Vector items[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t at = first + i * kItemElements + lane * 8;
      items[i] = Vector::LoadIf(at < hidden, x + at);
    }
    const float scale =
        QuantizeGroups<Encoding::kMultiply, kGroupSize>(items, rule, [&](int i, const auto& codes) {
          const int64_t at = first + i * kItemElements + lane * 8;
          if (at < hidden) *reinterpret_cast<uint2*>(row + at) = make_uint2(codes[0], codes[1]);
        });
    const int64_t at =
        first + Warp::FirstOwned(lane) * kItemElements + Warp::GroupOf(lane) * kGroupSize;
    if (Warp::Writes(lane) && at < hidden) scales[at / kGroupSize] = scale;
  }
}

__device__ int64_t RowBytes(const SharedArguments& shared) {
  const int64_t hidden = shared.hidden;
  if (shared.format == static_cast<int64_t>(RowFormat::kBF16)) return hidden * 2;
  const int64_t bytes = (hidden + 3) / 4 * 4 + (hidden + kGroupSize - 1) / kGroupSize * 4;
  return (bytes + 15) / 16 * 16;
}

// One token's messages. `row` and `headers` are the block's shared memory.
__device__ void SendToken(const SendArguments& a, const Destinations& d, int64_t token,
                          uint8_t* row, uint8_t* headers, int* index) {
  const DeviceBuffer& buffer = a.buffer;
  const uint32_t ranks = d.ranks[token];
  if (ranks == 0) return;
  const int warp = threadIdx.x / kLanes;
  const int64_t header_bytes = HeaderBytes(a.shared.topk);
  if (threadIdx.x < static_cast<unsigned>(buffer.ranks()) && (ranks >> threadIdx.x & 1u) != 0)
    index[threadIdx.x] = MessageIndex(d, token, static_cast<int>(threadIdx.x));
  for (int rank = warp; rank < buffer.ranks(); rank += kWarps)
    if ((ranks >> rank & 1u) != 0) PutHeader(a, token, ranks, rank, headers + rank * header_bytes);
  const uint16_t* const x = a.x + token * a.shared.hidden;
  if (a.shared.format == static_cast<int64_t>(RowFormat::kBF16)) {
    CopyVectors(row, x, a.shared.hidden * 2, static_cast<int>(threadIdx.x), kThreads);
  } else {
    CastRow(a, x, row);
  }
  __syncthreads();
  const int64_t row_bytes = RowBytes(a.shared);
  for (int step = 0; step < buffer.ranks(); ++step) {
    const int rank = (buffer.rank() + step) % buffer.ranks();
    if ((ranks >> rank & 1u) == 0) continue;
    uint8_t* const message = buffer.Message(rank, buffer.rank(), index[rank]);
    CopyVectors(message, headers + rank * header_bytes, header_bytes, static_cast<int>(threadIdx.x),
                kThreads);
    CopyVectors(message + buffer.row_offset(), row, row_bytes, static_cast<int>(threadIdx.x),
                kThreads);
  }
  __syncthreads();  // before the next token takes the shared memory
}

// Tells every rank how many messages it got, a lane each. A warp calls it.
__device__ void PutHeads(const SendArguments& a, const Destinations& d) {
  const int lane = threadIdx.x % kLanes;
  if (lane >= a.buffer.ranks()) return;
  DispatchHead head = {a.shared, 0, -1, 0};
  if (d.invalid != ~0ull) {
    head.invalid_token = static_cast<int64_t>(d.invalid) / a.shared.topk;
    head.invalid_id = a.ids[static_cast<int64_t>(d.invalid)];
  } else {
    head.count = MessageIndex(d, a.tokens, lane);
  }
  a.buffer.Head(lane, a.buffer.rank()) = head;
}

__global__ void __launch_bounds__(kThreads) SendKernel(const __grid_constant__ SendArguments a) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ Destinations destinations;
  __shared__ int index[kMostRanks];
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const uint64_t epoch = buffer.State().epoch + 1;
  // Nobody writes messages over those that a rank has not unpacked yet.
  const bool ok = MayBegin(buffer, a.patience.failure) &&
                  WaitForAll(buffer, a.patience, begin_ns,
                             {SignalKind::kFree, epoch - 1, Operation::kLowLatencyDispatch,
                              Missing::kFreeSlot});
  if (ok) {
    FindDestinations(a, &destinations);
    if (destinations.invalid == ~0ull) {
      uint8_t* const headers = shared + RowBytes(a.shared);
      for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x)
        SendToken(a, destinations, token, shared, headers, index);
    }
    __threadfence_system();
  }
  if (!IsLastBlock(a.arrived) || threadIdx.x >= kLanes) return;
  if (!ok || FailedForWarp(a.patience.failure)) {
    if (threadIdx.x == 0) SnapshotFailure(a.patience.failure, a.snapshot);
    return;
  }
  PutHeads(a, destinations);
  __threadfence_system();
  __syncwarp();
  if (threadIdx.x == 0) buffer.State().epoch = epoch;
  SignalAll(buffer, SignalKind::kMessages, epoch);
}

}  // namespace

void DispatchSend(const Exec& exec, const DispatchSendCall& call) {
  const int ranks = call.buffer->routes.world_size();
  const int64_t hidden = call.arguments.hidden;
  const SendArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .shared = call.arguments,
      .placement = {call.arguments.experts, ranks},
      .tokens = call.x.size(0),
      .x = call.x.data<uint16_t>(),
      .ids = TopkIds(call.topk_idx),
      .weights = call.topk_weights.data<float>(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1),
      .patience = PatienceOf(exec, call.timeout_ms),
      .snapshot = exec.cuda_snapshot(),
  };
  const int64_t grid = std::clamp<int64_t>(a.tokens, 1, kMostBlocks);
  const int64_t row_bytes = MessageBytes(hidden, 1) - HeaderBytes(1);
  Launch(SendKernel,
         {.grid = dim3(static_cast<unsigned>(grid)),
          .block = kThreads,
          .shared_bytes = row_bytes + ranks * HeaderBytes(call.arguments.topk)},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
