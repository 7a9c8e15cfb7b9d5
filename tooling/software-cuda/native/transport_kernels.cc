// transport's kernels (packages/transport/native/cuda/operations.cu, put_all.cu) as functions of
// the host.
#include <chrono>
#include <cstring>
#include <thread>

#include "cuda/failure_text.h"
#include "cuda/operations.h"
#include "cuda/poison_words.h"
#include "moe_ep/cuda/check.h"
#include "moe_ep/transport/poison_word.h"
#include "software_cuda.h"

namespace moe_ep::cuda {
namespace {

using Clock = std::chrono::steady_clock;

template <typename Word>
Word Load(const Word* word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

void Launch(const Exec& exec, std::function<void()> kernel) {
  auto* const stream = static_cast<cudaStream_t>(exec.cuda_stream());
  Check(software_cuda::Submit(stream, cudaGraphNodeTypeKernel, std::move(kernel)),
        "cudaLaunchKernelEx");
}

void Fail(moe_ep_failure_record* record, moe_ep_describe_failure describe,
          std::initializer_list<int64_t> values) {
  uint32_t fine = 0;
  if (!__atomic_compare_exchange_n(&record->failed, &fine, 1u, false, __ATOMIC_ACQ_REL,
                                   __ATOMIC_ACQUIRE))
    return;
  record->describe = describe;
  std::copy(values.begin(), values.end(), record->values);
}

// What kernels see of a rank's peers. The command keeps the routes that it was made of.
struct View {
  moe_ep_route_table table;

  uint64_t* Signal(int peer, uint64_t index) const {
    return reinterpret_cast<uint64_t*>(table.device_bases[peer] + kControlBytes +
                                       index * sizeof(SignalCell));
  }
  uint64_t* PoisonOf(int peer) const {
    return &reinterpret_cast<DeviceControl*>(table.device_bases[peer])->poison;
  }
  bool CheckNotPoisoned(moe_ep_failure_record* failure) const {
    const uint64_t word = Load(PoisonOf(table.rank));
    if (word == 0 && Load(table.host_poison) == PoisonRecord::kFine) return true;
    Fail(failure, table.describe_poison, {static_cast<int64_t>(word), table.rank, table.poison_id});
    return false;
  }
  void TellAll(PoisonWord cause) const {
    for (int peer = 0; peer < table.world_size; ++peer) {
      if (table.device_bases[peer] == nullptr || Load(PoisonOf(peer)) != 0) continue;
      __atomic_store_n(PoisonOf(peer), cause.Pack(), __ATOMIC_RELEASE);
    }
  }
};

// values: cause, rank, address of the text, index, value, timeout in ms
void DescribeWait(const int64_t* values, moe_ep_failure_text* text) {
  PoisonWord word = {};
  word.cause = static_cast<PoisonWord::Cause>(values[0]);
  const std::string missing =
      *reinterpret_cast<const std::string*>(values[2]) + ": signal " + std::to_string(values[3]) +
      " did not reach " + std::to_string(values[4]) + " in " + std::to_string(values[5]) + " ms";
  SetFailureText(text, CodeOf(word), WordsOf(word.cause, static_cast<int>(values[1]), missing));
}

void WaitForSignal(const View& view, const WaitedSignal& wait, const uint32_t* abort,
                   moe_ep_failure_record* failure) {
  if (Load(&failure->failed) != 0) return;
  const int rank = view.table.rank;
  // A deadline of centuries is not added to the clock.
  const Clock::time_point begin = Clock::now();
  while (Load(view.Signal(rank, wait.index)) < wait.value) {
    if (!view.CheckNotPoisoned(failure)) return;
    const bool aborted = Load(abort) != 0;
    const bool late = Clock::now() - begin > std::chrono::milliseconds(std::min<int64_t>(
                                                 wait.timeout_ms, int64_t{1} << 40));
    if (aborted || late) {
      PoisonWord word = PoisonWord::OfSignal(rank, wait.index);
      word.cause = aborted ? PoisonWord::kAborted : PoisonWord::kTimeout;
      view.TellAll(word);
      return Fail(
          failure, DescribeWait,
          {word.cause, rank, reinterpret_cast<int64_t>(wait.what), static_cast<int64_t>(wait.index),
           static_cast<int64_t>(wait.value), wait.timeout_ms});
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

}  // namespace

void Put(const Exec& exec, const Routes& routes, int peer, uint64_t offset, const void* source,
         uint64_t bytes) {
  if (bytes == 0) return;
  Check(cudaMemcpyAsync(routes.payload(peer, offset), source, bytes, cudaMemcpyDefault,
                        static_cast<cudaStream_t>(exec.cuda_stream())),
        "cudaMemcpyAsync");
}

void PutAll(const Exec& exec, const std::vector<PutPart>& parts, int64_t) {
  Launch(exec, [parts, failure = exec.cuda_skip()] {
    if (failure != nullptr && Load(&failure->failed) != 0) return;
    for (const PutPart& part : parts)
      std::memcpy(part.to, part.from, static_cast<size_t>(part.bytes));
  });
}

void Signal(const Exec& exec, const Routes& routes, int peer, uint64_t index, uint64_t value) {
  Launch(exec, [=, view = View{routes.table()}, failure = exec.cuda_failure()] {
    if (Load(&failure->failed) != 0 || !view.CheckNotPoisoned(failure)) return;
    __atomic_store_n(view.Signal(peer, index), value, __ATOMIC_RELEASE);
  });
}

void Add(const Exec& exec, const Routes& routes, int peer, uint64_t index, int64_t delta) {
  Launch(exec, [=, view = View{routes.table()}, failure = exec.cuda_failure()] {
    if (Load(&failure->failed) != 0 || !view.CheckNotPoisoned(failure)) return;
    __atomic_fetch_add(view.Signal(peer, index), static_cast<uint64_t>(delta), __ATOMIC_RELEASE);
  });
}

void Wait(const Exec& exec, const Routes& routes, const WaitedSignal& wait) {
  Launch(exec, [wait, view = View{routes.table()}, abort = exec.abort_word(),
                failure = exec.cuda_failure()] { WaitForSignal(view, wait, abort, failure); });
}

}  // namespace moe_ep::cuda
