// The receive phase of dispatch: once all sources have signalled, a block for each local expert
// scans the headers of all messages, in order, and packs that expert's rows.
#include <algorithm>

#include "cuda/device_buffer.cuh"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x6c6c72656376303a;  // this file's

struct ReceiveArguments {
  DeviceBuffer buffer;
  SharedArguments shared;
  int64_t experts;  // of this rank
  int64_t rows;     // of an expert, or of a source
  uint8_t* x;
  uint8_t* scales;        // column-major, 4 bytes each; null for bf16
  int64_t scale_columns;  // numbers, or words
  bool packed;
  int32_t* count;
  int32_t* src_info;
  int64_t* layout_range;
  uint8_t* origins;
  int32_t* num_messages;
  int32_t* topk_idx;    // rank-major
  float* topk_weights;  // or null
  int32_t* recv_stats;  // or null
  int64_t* wait_stats;  // or null
  unsigned int* arrived;
  Patience patience;
  moe_ep_describe_failure describe_mismatch;
  moe_ep_describe_failure describe_invalid_id;
  moe_ep_failure_record* failure;
  moe_ep_failure_record* snapshot;
};

// What a block knows of all messages.
struct Inbox {
  int first[kMostRanks + 1];  // message of each source, counted through all
  int of_source[kMostRanks];  // rows of the block's expert
  int of_warp[kWarps];
  int chosen[kThreads];  // messages of a chunk that have the expert

  __device__ int SourceOf(int message) const {
    int source = 0;
    while (first[source + 1] <= message) ++source;
    return source;
  }
};

// Whether all ranks may go on with this dispatch; else `reports` says why not. All ranks, and all
// blocks, find the same, for all see all heads. One thread calls it.
__device__ bool CheckHeads(const ReceiveArguments& a, bool reports) {
  const DeviceBuffer& buffer = a.buffer;
  const auto* first = reinterpret_cast<const int64_t*>(&buffer.Head(buffer.rank(), 0).arguments);
  for (int source = 0; source < buffer.ranks(); ++source) {
    const auto* other =
        reinterpret_cast<const int64_t*>(&buffer.Head(buffer.rank(), source).arguments);
    for (int i = 0; i < kNumSharedArguments; ++i) {
      if (__ldcg(first + i) == __ldcg(other + i)) continue;
      if (reports)
        Fail(a.failure, a.describe_mismatch, i, __ldcg(first + i), __ldcg(other + i), source);
      return false;
    }
  }
  for (int source = 0; source < buffer.ranks(); ++source) {
    const DispatchHead& head = buffer.Head(buffer.rank(), source);
    if (__ldcg(&head.invalid_token) < 0) continue;
    if (reports)
      Fail(a.failure, a.describe_invalid_id, source, __ldcg(&head.invalid_token),
           __ldcg(&head.invalid_id), a.shared.experts);
    return false;
  }
  return true;
}

// All threads of the block call it.
__device__ void CountMessages(const ReceiveArguments& a, Inbox* inbox) {
  if (threadIdx.x == 0) {
    inbox->first[0] = 0;
    for (int source = 0; source < a.buffer.ranks(); ++source) {
      const auto count =
          static_cast<int32_t>(__ldcg(&a.buffer.Head(a.buffer.rank(), source).count));
      inbox->first[source + 1] = inbox->first[source] + count;
      if (blockIdx.x == 0) a.num_messages[source] = count;
    }
  }
  __syncthreads();
}

__device__ const MessageHeader* HeaderOf(const ReceiveArguments& a, const Inbox& inbox,
                                         int message) {
  const int source = inbox.SourceOf(message);
  return reinterpret_cast<const MessageHeader*>(
      a.buffer.Message(a.buffer.rank(), source, message - inbox.first[source]));
}

__device__ MessageHeader* OriginOf(const ReceiveArguments& a, const Inbox& inbox, int message) {
  const int source = inbox.SourceOf(message);
  const int64_t place = source * a.buffer.layout.max_tokens + message - inbox.first[source];
  return reinterpret_cast<MessageHeader*>(a.origins + place * a.buffer.row_offset());
}

// Words of the row's scales to their columns; every thread that calls it writes one.
__device__ void PutScales(const ReceiveArguments& a, const uint8_t* row, int64_t group, int64_t at,
                          int64_t column) {
  const int64_t hidden = a.shared.hidden;
  const int64_t groups = (hidden + kGroupSize - 1) / kGroupSize;
  const auto* const scales = reinterpret_cast<const uint32_t*>(row + (hidden + 3) / 4 * 4);
  uint32_t word = 0;
  if (a.packed) {
    for (int64_t i = 0; i < 4 && column * 4 + i < groups; ++i)
      word |= (__ldcg(scales + column * 4 + i) >> 23 & 0xffu) << (8 * i);
  } else {
    word = __ldcg(scales + column);
  }
  reinterpret_cast<uint32_t*>(a.scales)[(group * a.scale_columns + column) * a.rows + at] = word;
}

__device__ int64_t StoredBytes(const ReceiveArguments& a) {
  return a.scales == nullptr ? a.shared.hidden * 2 : a.shared.hidden;
}

// The rows of one expert. All threads of the block call it.
__device__ void PackExpert(const ReceiveArguments& a, int expert, Inbox* inbox) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes;
  const int warp = thread / kLanes;
  const int ranks = a.buffer.ranks();
  const int messages = inbox->first[ranks];
  const int64_t first_row = expert * a.rows;
  const int64_t row_bytes = StoredBytes(a);
  if (thread < ranks) inbox->of_source[thread] = 0;
  __syncthreads();
  int filled = 0;
  for (int begin = 0; begin < messages; begin += kThreads) {
    const int message = begin + thread;
    bool has = false;
    const MessageHeader* header = nullptr;
    if (message < messages) {
      header = HeaderOf(a, *inbox, message);
      for (int i = 0; i < header->count; ++i) has |= header->selections()[i].expert == expert;
    }
    const uint32_t having = __ballot_sync(kAllLanes, has);
    if (lane == 0) inbox->of_warp[warp] = __popc(having);
    __syncthreads();
    int before = __popc(having & ((1u << lane) - 1u));
    int chunk = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += inbox->of_warp[w];
      chunk += inbox->of_warp[w];
    }
    if (has) {
      inbox->chosen[before] = message;
      atomicAdd(&inbox->of_source[inbox->SourceOf(message)], 1);
      const auto row = static_cast<int32_t>(first_row + filled + before);
      a.src_info[row] = header->token;
      MessageHeader* const origin = OriginOf(a, *inbox, message);
      for (int i = 0; i < header->count; ++i) {
        Selection selection = header->selections()[i];
        if (selection.expert != expert) continue;
        // Of a message's experts the first one copies what is the same for all.
        if (i == 0) *origin = *header;
        selection.expert = row;
        origin->selections()[i] = selection;
      }
    }
    __syncthreads();
    const auto row_of = [&](int i) {
      return reinterpret_cast<const uint8_t*>(HeaderOf(a, *inbox, inbox->chosen[i])) +
             a.buffer.row_offset();
    };
    for (int i = warp; i < chunk; i += kWarps)
      CopyVectors(a.x + (first_row + filled + i) * row_bytes, row_of(i), row_bytes, lane, kLanes);
    if (a.scales != nullptr) {
      for (int64_t i = thread; i < chunk * a.scale_columns; i += kThreads) {
        const int of = static_cast<int>(i % chunk);
        PutScales(a, row_of(of), expert, filled + of, i / chunk);
      }
    }
    filled += chunk;
    __syncthreads();  // before the next chunk takes the shared memory
  }
  if (thread == 0) {
    a.count[expert] = filled;
    if (a.recv_stats != nullptr) a.recv_stats[expert] += filled;
  }
  if (thread >= ranks) return;
  int64_t begin = 0;
  for (int source = 0; source < thread; ++source) begin += inbox->of_source[source];
  a.layout_range[int64_t{expert} * ranks + thread] = begin << 32 | inbox->of_source[thread];
}

// A row of a source: what was sent there, or nothing. All threads of the block call it.
__device__ void KeepRow(const ReceiveArguments& a, const Inbox& inbox, int source, int64_t index) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t at = source * a.rows + index;
  const bool sent = index < inbox.first[source + 1] - inbox.first[source];
  uint8_t* const message = a.buffer.Message(a.buffer.rank(), source, index);
  const auto* const header = reinterpret_cast<const MessageHeader*>(message);
  if (thread < a.shared.topk) {
    int32_t id = -1;
    float weight = 0.0f;
    for (int i = 0; sent && i < header->count; ++i) {
      if (header->selections()[i].slot != thread) continue;
      id = header->selections()[i].expert;
      weight = header->selections()[i].weight;
    }
    a.topk_idx[at * a.shared.topk + thread] = id;
    if (a.topk_weights != nullptr) a.topk_weights[at * a.shared.topk + thread] = weight;
  }
  if (!sent) return;
  if (thread == 0) a.src_info[at] = header->token;
  CopyVectors(a.origins + (source * a.buffer.layout.max_tokens + index) * a.buffer.row_offset(),
              message, HeaderBytes(a.shared.topk), thread, kThreads);
  const uint8_t* const row = message + a.buffer.row_offset();
  const int64_t row_bytes = StoredBytes(a);
  CopyVectors(a.x + at * row_bytes, row, row_bytes, thread, kThreads);
  if (a.scales == nullptr) return;
  for (int64_t column = thread; column < a.scale_columns; column += kThreads)
    PutScales(a, row, source, index, column);
}

// Tells sources that their messages may be overwritten, whether this rank could use them or not. A
// warp of the last block calls it.
__device__ void Free(const ReceiveArguments& a, uint64_t epoch) {
  const int lane = threadIdx.x % kLanes;
  const DeviceBuffer& buffer = a.buffer;
  const bool came = lane >= buffer.ranks() ||
                    LoadSignal(buffer.routes.Signal(
                        buffer.rank(), buffer.SignalIndex(SignalKind::kMessages, lane))) >= epoch;
  if (__all_sync(kAllLanes, came)) SignalAll(buffer, SignalKind::kFree, epoch);
}

__global__ void __launch_bounds__(kThreads)
    ReceiveKernel(const __grid_constant__ ReceiveArguments a) {
  __shared__ Inbox inbox;
  const uint64_t begin_ns = Nanoseconds();
  const DeviceBuffer& buffer = a.buffer;
  const uint64_t epoch = buffer.State().epoch;
  bool ok =
      MayBegin(buffer, a.failure) &&
      WaitForAll(buffer, a.patience, begin_ns,
                 {SignalKind::kMessages, epoch, Operation::kLowLatencyDispatch, Missing::kMessages},
                 blockIdx.x == 0 ? a.wait_stats : nullptr);
  ok = ok && __syncthreads_and(threadIdx.x != 0 || CheckHeads(a, blockIdx.x == 0)) != 0;
  if (ok) {
    CountMessages(a, &inbox);
    if (a.shared.rank_major != 0) {
      if (blockIdx.x == 0 && static_cast<int>(threadIdx.x) < buffer.ranks()) {
        const int source = static_cast<int>(threadIdx.x);
        a.count[source] = inbox.first[source + 1] - inbox.first[source];
        if (a.recv_stats != nullptr) a.recv_stats[source] += a.count[source];
      }
      for (int64_t i = blockIdx.x; i < buffer.ranks() * a.rows; i += gridDim.x)
        KeepRow(a, inbox, static_cast<int>(i / a.rows), i % a.rows);
    } else {
      for (int64_t expert = blockIdx.x; expert < a.experts; expert += gridDim.x)
        PackExpert(a, static_cast<int>(expert), &inbox);
    }
  }
  if (!IsLastBlock(a.arrived) || threadIdx.x >= kLanes) return;
  if (!FailedForWarp(a.failure)) {
    if (threadIdx.x == 0) buffer.State().received = epoch;
  } else if (threadIdx.x == 0) {
    SnapshotFailure(a.failure, a.snapshot);
  }
  __syncwarp();
  Free(a, epoch);
}

}  // namespace

void DispatchReceive(const Exec& exec, const DispatchReceiveCall& call) {
  const bool rank_major = call.arguments.rank_major != 0;
  const ReceiveArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .shared = call.arguments,
      .experts = rank_major ? 0 : call.recv_count.size(0),
      .rows = call.src_info.size(1),
      .x = call.recv_x.data<uint8_t>(),
      .scales = call.recv_scales.data<uint8_t>(),
      .scale_columns = call.recv_scales ? call.recv_scales.size(2) : 0,
      .packed = call.recv_scales && call.recv_scales.dtype() == DType::kI32,
      .count = call.recv_count.data<int32_t>(),
      .src_info = call.src_info.data<int32_t>(),
      .layout_range = call.layout_range.data<int64_t>(),
      .origins = call.received.origins.data<uint8_t>(),
      .num_messages = call.received.num_messages.data<int32_t>(),
      .topk_idx = call.recv_topk_idx.data<int32_t>(),
      .topk_weights = call.recv_topk_weights.data<float>(),
      .recv_stats = call.recv_stats.data<int32_t>(),
      .wait_stats = call.wait_stats.data<int64_t>(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 1),
      .patience = PatienceOf(exec, call.timeout_ms),
      .describe_mismatch = DescribeMismatch,
      .describe_invalid_id = DescribeInvalidId,
      .failure = exec.cuda_failure(),
      .snapshot = exec.cuda_snapshot(),
  };
  const int64_t items =
      rank_major ? call.buffer->routes.world_size() * call.src_info.size(1) : a.experts;
  const int64_t grid = std::clamp<int64_t>(items, 1, kMostBlocks);
  Launch(ReceiveKernel, {.grid = dim3(static_cast<unsigned>(grid)), .block = kThreads},
         exec.cuda_stream(), a);
}

}  // namespace moe_ep::cuda
