// Dispatch: one kernel, or one for each phase where a receive hook parts them.
#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "cuda/cast_row.cuh"
#include "cuda/dispatch_receive.cuh"
#include "cuda/dispatch_send.cuh"
#include "cuda/kernels.h"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x6c6c646973703032;  // this file's

union Shared {
  SendShared send;
  ReceiveShared receive;
};
// Bulk copies write only what nothing else has written.
static_assert(offsetof(ReceiveShared, stages) >= sizeof(SendShared));

// bf16 and fp8: the same for both, whose choice is made for each piece.
struct WideRows {
  static constexpr bool kByteScales = false;
};

// `Rows`: the formats that it knows.
template <bool kSend, bool kReceive, typename Rows>
__global__ void __launch_bounds__(kThreads, 2)
    DispatchKernel(const __grid_constant__ DispatchArguments a) {
  extern __shared__ __align__(16) uint8_t memory[];
  auto* const shared = reinterpret_cast<Shared*>(memory);
  FetchArguments(a);
  cudaGridDependencySynchronize();
  const uint64_t begin_ns = Nanoseconds();
  // Nobody advances it before all blocks have come to the end of sending.
  const uint64_t epoch = a.buffer.State().epoch + (kSend ? 1 : 0);
  bool ok = true;
  RankBits present;
  if constexpr (kSend) {
    present = a.buffer.Unmasked();
    ok = Send(a, begin_ns, epoch, &present, &shared->send,
              [&](const LoadedPiece& loaded, CastPiece* cast) {
                if constexpr (std::is_same_v<Rows, WideRows>) {
                  SendPiece(a, present, loaded, cast);
                } else {
                  SendSmallPiece<Rows>(a, present, loaded, cast);
                }
              });
  } else {
    present = a.buffer.State().present;
    ok = !Failed(a.patience.failure);
  }
  if constexpr (kReceive)
    Receive<Rows::kByteScales>(a, begin_ns, epoch, ok, present, &shared->receive);
}

}  // namespace

void Dispatch(const Exec& exec, const DispatchCall& call) {
  const bool rank_major = call.arguments.rank_major != 0;
  const bool byte_scales = HasByteScales(call.format());
  const DispatchArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .shared = call.arguments,
      .placement = {call.arguments.experts, call.buffer->routes.world_size()},
      .patience = PatienceOf(exec, call.timeout_ms),
      .snapshot = exec.cuda_snapshot(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 2),
      .refusal = call.refusal,
      .tokens = call.x.size(0),
      .x = call.x.data<uint16_t>(),
      .ids = TopkIds(call.topk_idx),
      .weights = call.topk_weights.data<float>(),
      .global_scale = call.global_scale.data<float>(),
      .rows = call.src_info.size(1),
      .pieces = RowPieces::Of(CodeBytes(call.format(), call.arguments.hidden)),
      .recv_x = call.recv_x.data<uint8_t>(),
      .scale_rows = byte_scales ? ScaleRows::Of(call.recv_scales) : ScaleRows{},
      .scales = byte_scales ? nullptr : call.recv_scales.data<uint32_t>(),
      .scale_columns = call.recv_scales ? call.recv_scales.size(2) : 0,
      .packed = call.recv_scales && call.recv_scales.dtype() == DType::kI32,
      .count = call.recv_count.data<int32_t>(),
      .src_info = call.src_info.data<int32_t>(),
      .layout_range = rank_major ? nullptr : call.layout_range.data<int64_t>(),
      .received_rows = call.received.rows.data<int32_t>(),
      .received_messages = call.received.messages.data<int32_t>(),
      .received_first = call.received.first.data<int32_t>(),
      .topk_idx = call.recv_topk_idx.data<int32_t>(),
      .topk_weights = call.recv_topk_weights.data<float>(),
      .recv_stats = call.recv_stats.data<int32_t>(),
      .wait_stats = call.wait_stats.data<int64_t>(),
      .describe_mismatch = DescribeMismatch,
      .describe_invalid_id = DescribeInvalidId,
      .describe_refusal = DescribeDispatchRefusal,
      .describe_masked_out = DescribeMaskedOut,
  };
  const auto launch = [&](auto* kernel, int64_t shared_bytes) {
    Launch(kernel,
           {.grid = dim3(static_cast<unsigned>(call.sms)),
            .block = kThreads,
            .shared_bytes = shared_bytes,
            .overlaps_previous = true,
            .most_shared = true},
           exec.cuda_stream(), a);
  };
  const auto launch_phases = [&](auto rows) {
    using Rows = decltype(rows);
    if (call.phases.send && call.phases.receive) {
      launch(DispatchKernel<true, true, Rows>, sizeof(Shared));
    } else if (call.phases.send) {
      launch(DispatchKernel<true, false, Rows>, sizeof(SendShared));
    } else {
      launch(DispatchKernel<false, true, Rows>, sizeof(ReceiveShared));
    }
  };
  switch (call.format()) {
    case RowFormat::kMxfp8:
      return launch_phases(Mxfp8Rows{});
    case RowFormat::kNvfp4:
      return launch_phases(Nvfp4Rows{});
    default:
      launch_phases(WideRows{});
  }
}

}  // namespace moe_ep::cuda
