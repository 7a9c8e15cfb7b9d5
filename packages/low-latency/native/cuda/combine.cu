// Combine: one kernel, or one for each phase where a receive hook parts them.

#include "cuda/combine_receive.cuh"
#include "cuda/combine_send.cuh"
#include "cuda/kernels.h"
#include "moe_ep/cuda/launch.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kScratchKey = 0x6c6c636f6d623032;  // this file's

template <bool kSend, bool kReceive, typename Results>
__global__ void __launch_bounds__(kThreads, 2)
    CombineKernel(const __grid_constant__ CombineArguments a) {
  FetchArguments(a);
  cudaGridDependencySynchronize();
  const uint64_t begin_ns = Nanoseconds();
  const SlotState state = a.buffer.State();
  bool ok = true;
  if constexpr (kSend) {
    ok = SendAnswers<Results>(a, state);
  } else {
    ok = MayBegin(a, state);
  }
  if constexpr (kReceive) SumAll<Results>(a, state, begin_ns, ok);
}

}  // namespace

void Combine(const Exec& exec, const CombineCall& call) {
  const CombineArguments a = {
      .buffer = ToDevice(*call.buffer, call.slot),
      .placement = {call.experts, call.buffer->routes.world_size()},
      .patience = PatienceOf(exec, call.timeout_ms),
      .snapshot = exec.cuda_snapshot(),
      .arrived = exec.CudaScratch<unsigned int>(kScratchKey, 2),
      .weighted = call.weighted,
      .rank_major = call.rank_major,
      .hidden = static_cast<int>(call.x.size(2)),
      .topk = static_cast<int>(call.topk_idx.size(1)),
      .x = call.x.data<uint16_t>(),
      .rows = call.received.rows.data<int32_t>(),
      .messages = call.received.messages.data<int32_t>(),
      .first = call.received.first.data<int32_t>(),
      .ids = TopkIds(call.topk_idx),
      .weights = call.topk_weights.data<float>(),
      .tokens = call.out.size(0),
      .out = call.out.data<uint16_t>(),
      .wait_stats = call.wait_stats.data<int64_t>(),
      .describe_id = DescribeCombineId,
      .describe_encodings = DescribeEncodings,
      .describe_refusal = DescribeCombineRefusal,
      .describe_not_received = DescribeNotReceived,
  };
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(call.sms)),
                             .block = kThreads,
                             .overlaps_previous = true,
                             .most_shared = true};
  const auto launch = [&](auto results) {
    using Results = decltype(results);
    if (call.phases.send && call.phases.receive) {
      Launch(CombineKernel<true, true, Results>, shape, exec.cuda_stream(), a);
    } else if (call.phases.send) {
      Launch(CombineKernel<true, false, Results>, shape, exec.cuda_stream(), a);
    } else {
      Launch(CombineKernel<false, true, Results>, shape, exec.cuda_stream(), a);
    }
  };
  if (call.logfmt) {
    launch(LogResults{});
  } else {
    launch(PlainResults{});
  }
}

}  // namespace moe_ep::cuda
