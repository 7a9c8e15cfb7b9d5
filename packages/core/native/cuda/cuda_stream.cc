#include "cuda/cuda_stream.h"

#include <chrono>
#include <exception>
#include <optional>
#include <utility>

#include "cpu/host_recording.h"
#include "cuda/driver_use.h"
#include "cuda/host_failures.h"
#include "cuda/kernels.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {
namespace {

CudaStream* Running(moe_ep_exec* exec) {
  return static_cast<CudaStream*>(static_cast<Stream*>(exec->state));
}

CommandPtr MarkerCommand(std::function<void(moe_ep_exec*)> function) {
  return std::make_shared<Command>(Command::Kind::kMarker, std::move(function));
}

Failure Broken(const std::exception& error) { return {"ERR_MOE_EP_INTERNAL", error.what()}; }

}  // namespace

std::shared_ptr<CudaStream> CudaStream::Create(const moe_ep_core_api* api, Device& device) {
  device.MakeCurrent();
  cudaStream_t made = nullptr;
  Check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreate");
  return std::shared_ptr<CudaStream>(new CudaStream(api, device, made, /*owned=*/true));
}

std::shared_ptr<CudaStream> CudaStream::Wrap(const moe_ep_core_api* api, Device& device,
                                             cudaStream_t foreign) {
  return std::shared_ptr<CudaStream>(new CudaStream(api, device, foreign, /*owned=*/false));
}

CudaStream::CudaStream(const moe_ep_core_api* api, Device& device, cudaStream_t stream, bool owned)
    : Stream(device.ordinal()),
      api_(api),
      device_(device),
      stream_(stream),
      owned_(owned),
      failure_(
          static_cast<moe_ep_failure_record*>(device.AllocateZeroed(sizeof(moe_ep_failure_record))),
          [&device](moe_ep_failure_record* record) {
            device.Retire([&device, record] { device.Free(record); });
          }),
      abort_(std::make_shared<Abort>(device)),
      abort_failure_(NewPinned<moe_ep_failure_record>(device)),
      completions_(std::make_shared<CompletionThread>(device)),
      scratch_(device),
      shared_(!owned) {
  *abort_failure_ = RecordOfAbort();
  device.Add(*this);
}

CudaStream::~CudaStream() {
  MarkClosed();
  Join();
  EventPtr last;
  {
    std::lock_guard lock(marker_mutex_);
    last = marker_;
  }
  device_.Remove(*this, std::move(last));
  if (owned_) cudaStreamDestroy(stream_);
}

cudaStream_t CudaStream::Share() {
  std::lock_guard lock(marker_mutex_);
  shared_ = true;
  return stream_;
}

moe_ep_failure_record* CudaStream::failure() const {
  return captured_ != nullptr ? captured_->failure() : failure_.get();
}

bool CudaStream::Submit(CommandPtr command) {
  Run(command);
  return true;
}

void CudaStream::CaptureCommand(const CommandPtr& command) { Run(command); }

void CudaStream::Run(const CommandPtr& command) {
  device_.MakeCurrent();
  const Submission submission(*this);
  snapshot_ = nullptr;
  moe_ep_exec exec{api_, static_cast<Stream*>(this), device(), stream_, failure()};
  std::shared_ptr<OwnersGraph> owners;
  try {
    std::optional<RelaxedCaptures> relaxed;
    owners = OwnersCapture();
    if (owners != nullptr) {
      relaxed.emplace();
      owners->Keep(command);
      current_ = owners.get();
    }
    command->Run(&exec);
  } catch (const std::exception& error) {
    Fail(Broken(error));
  }
  current_ = nullptr;
}

void CudaStream::Retire(std::function<void()> then) {
  if (captured_ != nullptr) return captured_->at_end.push_back(std::move(then));
  if (current_ != nullptr) return current_->CallAtEnd(std::move(then));
  CountSubmission();
  device_.Retire(std::move(then));
}

void CudaStream::Fail(Failure failure) {
  snapshot_ = nullptr;
  try {
    LaunchFail(stream_, this->failure(), RecordOf(failure));
    MayFail();
  } catch (const std::exception&) {
    if (!host_failure_) host_failure_ = std::move(failure);
  }
}

void CudaStream::MayFail() {
  if (captured_ != nullptr) {
    captured_->may_fail = true;
  } else {
    may_fail_ = true;
    owner_may_fail_ = owner_may_fail_ || current_ != nullptr;
  }
}

moe_ep_failure_record* CudaStream::Snapshot() {
  if (captured_ != nullptr || current_ != nullptr) return nullptr;
  snapshot_ = NewPinned<moe_ep_failure_record>(device_);
  return snapshot_.get();
}

void* CudaStream::GetScratch(uint64_t key, uint64_t bytes) {
  if (captured_ != nullptr) return captured_->ScratchOf(this).Get(key, bytes);
  return (current_ != nullptr ? current_->scratch() : scratch_).Get(key, bytes);
}

EventPtr CudaStream::RecordEvent() {
  EventPtr event = device_.NewEvent();
  Check(cudaEventRecord(event.get(), stream_), "cudaEventRecord");
  return event;
}

CudaRecording::Parts CudaStream::NewParts() {
  CudaRecording::Parts parts = {};
  parts.device = &device_;
  parts.stream = abort_.get();
  parts.takes = takes_;
  parts.base = device_.CurrentBase();
  parts.aborts = awaited_;
  parts.aborts.insert(abort_);
  parts.completions = completions_;
  return parts;
}

CudaRecording::Parts CudaStream::PartsOfMark() {
  device_.MakeCurrent();
  const Submission submission(*this);
  CudaRecording::Parts parts = NewParts();
  parts.time = parts.done = RecordEvent();
  if (may_fail_ && snapshot_ != nullptr && !owner_may_fail_) {
    parts.failure = snapshot_;
  } else if (may_fail_) {
    // Behind the event that tells the time, so that work is not measured with it.
    parts.failure = NewPinned<moe_ep_failure_record>(device_);
    LaunchCopyFailure(stream_, failure_.get(), parts.failure.get());
    parts.done = RecordEvent();
  }
  return parts;
}

std::shared_ptr<Recording> CudaStream::Mark() {
  if (const auto owners = OwnersCapture()) return MarkIn(*owners);
  return std::make_shared<CudaRecording>(PartsOfMark());
}

bool CudaStream::Await(const std::shared_ptr<Recording>& recording, bool take_failure) {
  if (const auto cuda = std::dynamic_pointer_cast<CudaRecording>(recording)) {
    // Of this stream itself: what comes after comes after. Only a graph may run elsewhere.
    const CudaRecording::Parts& parts = cuda->parts();
    if (parts.stream == abort_.get() && parts.takes == takes_ && captured_ == nullptr &&
        parts.join == nullptr && !OwnerCaptures())
      return !closed();
    if (take_failure) ShareAborts(*cuda);
    return Enqueue(MarkerCommand([cuda, take_failure](moe_ep_exec* exec) {
      Running(exec)->AwaitDevice(*cuda, take_failure);
    }));
  }
  // Of a cpu stream: its thread sets a signal that a kernel looks at.
  const auto signal = NewPinned<HostSignal>(device_);
  recording->WhenComplete([signal, take_failure](MaybeFailure failure) {
    const DriverUse use;
    if (failure && take_failure) signal->failure = RecordOf(*std::move(failure));
    __atomic_store_n(&signal->ready, 1u, __ATOMIC_RELEASE);
  });
  return Enqueue(MarkerCommand([signal](moe_ep_exec* exec) {
    CudaStream* const stream = Running(exec);
    stream->MayFail();
    LaunchWaitForHost(stream->stream_, signal.get(), stream->abort_word(), exec->failure);
  }));
}

// An abort of the recorded stream, or of one that it waits for itself, reaches this one too.
void CudaStream::ShareAborts(const CudaRecording& recording) {
  for (const AbortPtr& abort : recording.parts().aborts) {
    awaited_.insert(abort);
    abort->AddDependent(std::static_pointer_cast<CudaStream>(shared_from_this()),
                        recording.parts().done);
  }
}

void CudaStream::AwaitDevice(const CudaRecording& recording, bool take_failure) {
  const CudaRecording::Parts& parts = recording.parts();
  const bool joins =
      current_ != nullptr && parts.join != nullptr && parts.capture == current_->id();
  const bool external = !joins && (captured_ != nullptr || current_ != nullptr);
  Check(cudaStreamWaitEvent(stream_, (joins ? parts.join : parts.done).get(),
                            external ? cudaEventWaitExternal : cudaEventWaitDefault),
        "cudaStreamWaitEvent");
  if (recording.parts().failure == nullptr || !take_failure) return;
  MayFail();
  LaunchMergeFailure(stream_, recording.parts().failure.get(), failure(), /*clear=*/false);
}

MaybeFailure CudaStream::Replay(const std::shared_ptr<const Graph>& graph) {
  auto& captured = static_cast<CudaGraph&>(*graph->device_graph);
  try {
    device_.MakeCurrent();
    const Submission submission(*this);
    snapshot_ = nullptr;
    // The kernels of a graph know its own record only, wherever it is launched.
    if (captured.may_fail) LaunchCopyFailure(stream_, failure_.get(), captured.failure());
    Check(cudaGraphLaunch(captured.executable, stream_), "cudaGraphLaunch");
    if (captured.may_fail) {
      LaunchMergeFailure(stream_, captured.failure(), failure_.get(), /*clear=*/true);
      may_fail_ = true;
    }
    if (captured.times.empty()) return std::nullopt;
    const CudaRecording::Parts end = PartsOfMark();
    for (const auto& [event, time] : captured.times) {
      CudaRecording::Parts parts = end;
      if (time != nullptr) parts.time = time;
      event->MoveTo(std::make_shared<CudaRecording>(std::move(parts)));
    }
  } catch (const std::exception& error) {
    return Broken(error);
  }
  return std::nullopt;
}

bool CudaStream::WhenDone(std::function<void(MaybeFailure)> then) {
  if (closed()) return false;
  CudaRecording::Parts parts = {};
  // A stream that was waited for may be aborted yet, which fails this one.
  if (!awaited_.empty()) may_fail_ = true;
  parts.aborts = awaited_;
  parts.aborts.insert(abort_);
  if (MaybeFailure failure = std::exchange(host_failure_, std::nullopt)) {
    may_fail_ = true;  // whatever is on the device is taken with the next await
    awaited_.clear();
    then(std::move(failure));
    return true;
  }
  device_.MakeCurrent();
  if (shared_ && ForeignCapture()) {
    then(Failure{"ERR_MOE_EP_CAPTURE", "the stream's owner captures it: it cannot be awaited"});
    return true;
  }
  const Submission submission(*this);
  snapshot_ = nullptr;
  EventPtr done = device_.NewEvent();
  if (may_fail_) {
    ++takes_;
    parts.failure = NewPinned<moe_ep_failure_record>(device_);
    LaunchTakeFailure(stream_, failure_.get(), parts.failure.get());
  }
  Check(cudaEventRecord(done.get(), stream_), "cudaEventRecord");
  // It may complete at once, and what was launched here must be counted then.
  CountSubmission();
  completions_->Add({std::move(done), parts.failure, parts.aborts, std::move(then)});
  // Not before: where something above throws the next await has it all to tell.
  may_fail_ = owner_may_fail_;
  awaited_.clear();
  return true;
}

CommandPtr CudaStream::DelayCommand(int64_t microseconds) {
  return std::make_shared<Command>(Command::Kind::kWork, [microseconds](moe_ep_exec* exec) {
    CudaStream* const stream = Running(exec);
    LaunchDelay(stream->stream_, microseconds, stream->abort_word(), exec->failure);
  });
}

CommandPtr CudaStream::FailCommand(Failure failure) {
  return MarkerCommand(
      [failure = std::move(failure)](moe_ep_exec* exec) { Running(exec)->Fail(failure); });
}

void CudaStream::Close(bool abort) {
  MarkClosed();
  // First, for it ends what a lock below may wait for.
  if (abort && !abort_->set()) {
    abort_->Set();
    Skip();
  }
  if (owned_) return;
  // Its owner may end the stream once it was closed and awaited: it is not touched again.
  std::lock_guard lock(marker_mutex_);
  if (left_) return;
  try {
    marked_at_end_ = captured_ == nullptr && !ended() && RecordMarker();
  } catch (const std::exception&) {
    // No event is to be had. The end of its awaits tells.
  }
  left_ = true;
}

// Kernels that are queued look at the record before they begin. A copy, because kernels that wait
// may hold all multiprocessors.
void CudaStream::Skip() {
  device_.MakeCurrent();
  const RelaxedCaptures relaxed;
  const cudaStream_t stream = device_.auxiliary();
  cudaMemcpyAsync(failure_.get(), abort_failure_.get(), sizeof(*abort_failure_), cudaMemcpyDefault,
                  stream);
  device_.CountAuxiliary();
  // It takes microseconds. A device that is so busy that it takes longer must not hold up an abort.
  const auto patience = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  while (cudaStreamQuery(stream) == cudaErrorNotReady &&
         std::chrono::steady_clock::now() < patience) {
  }
  cudaGetLastError();  // where the device itself has failed nothing of the queue runs
}

void CudaStream::Join() {
  if (ended()) return;
  device_.MakeCurrent();
  const RelaxedCaptures relaxed;
  if (owned_) cudaStreamSynchronize(stream_);
  completions_->Stop();
  ended_.store(true, std::memory_order_release);
}

}  // namespace moe_ep::cuda
