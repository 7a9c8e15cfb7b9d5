#include "cuda/failure_text.h"
#include "cuda/operations.h"
#include "cuda/poison_words.h"
#include "moe_ep/cuda/launch.h"
#include "moe_ep/transport/device_routes.cuh"

namespace moe_ep::cuda {
namespace {

constexpr LaunchShape kOneThread = {.grid = dim3(1), .block = dim3(1)};

__global__ void SetSignal(DeviceRoutes routes, int peer, uint64_t index, uint64_t value,
                          moe_ep_failure_record* failure) {
  if (Failed(failure) || !CheckNotPoisoned(routes, failure)) return;
  StoreSignal(routes.Signal(peer, index), value);
}

__global__ void AddToSignal(DeviceRoutes routes, int peer, uint64_t index, int64_t delta,
                            moe_ep_failure_record* failure) {
  if (Failed(failure) || !CheckNotPoisoned(routes, failure)) return;
  AddSignal(routes.Signal(peer, index), delta);
}

// Peers hear which signal did not come. This rank's own error says more: what it was for.
__global__ void WaitForSignal(DeviceRoutes routes, WaitedSignal wait, Patience patience,
                              moe_ep_describe_failure describe) {
  if (Failed(patience.failure)) return;
  const uint64_t begin = Nanoseconds();
  const uint64_t* const signal = routes.Signal(routes.rank, wait.index);
  WaitOrGiveUp(
      routes, patience, begin, [&] { return LoadSignal(signal) >= wait.value; },
      [&](PoisonWord::Cause cause) {
        PoisonWord word = PoisonWord::OfSignal(routes.rank, wait.index);
        word.cause = cause;
        TellAll(routes, word);
        Fail(patience.failure, describe, cause, routes.rank, reinterpret_cast<int64_t>(wait.what),
             static_cast<int64_t>(wait.index), static_cast<int64_t>(wait.value), wait.timeout_ms);
      });
}

// values: cause, rank, address of the text, index, value, timeout in ms
void DescribeWait(const int64_t* values, moe_ep_failure_text* text) {
  const PoisonWord word = {.cause = static_cast<PoisonWord::Cause>(values[0])};
  const std::string missing =
      *reinterpret_cast<const std::string*>(values[2]) + ": signal " + std::to_string(values[3]) +
      " did not reach " + std::to_string(values[4]) + " in " + std::to_string(values[5]) + " ms";
  SetFailureText(text, CodeOf(word), WordsOf(word.cause, static_cast<int>(values[1]), missing));
}

}  // namespace

void Put(const Exec& exec, const Routes& routes, int peer, uint64_t offset, const void* source,
         uint64_t bytes) {
  if (bytes == 0) return;
  Check(cudaMemcpyAsync(routes.payload(peer, offset), source, bytes, cudaMemcpyDefault,
                        static_cast<cudaStream_t>(exec.cuda_stream())),
        "cudaMemcpyAsync");
}

void Signal(const Exec& exec, const Routes& routes, int peer, uint64_t index, uint64_t value) {
  Launch(SetSignal, kOneThread, exec.cuda_stream(), ToDevice(routes), peer, index, value,
         exec.cuda_failure());
}

void Add(const Exec& exec, const Routes& routes, int peer, uint64_t index, int64_t delta) {
  Launch(AddToSignal, kOneThread, exec.cuda_stream(), ToDevice(routes), peer, index, delta,
         exec.cuda_failure());
}

void Wait(const Exec& exec, const Routes& routes, const WaitedSignal& wait) {
  Launch(WaitForSignal, kOneThread, exec.cuda_stream(), ToDevice(routes), wait,
         PatienceOf(exec, wait.timeout_ms), DescribeWait);
}

}  // namespace moe_ep::cuda
