// Streams, which have a thread each, and events.
#include <chrono>
#include <utility>

#include "software_cuda.h"

namespace software_cuda {
namespace {

struct Streams {
  std::mutex mutex;
  std::vector<CUstream_st*> all;  // for ever: a handle that was destroyed is known for what it is
  std::vector<CUstream_st*> legacy;
};
Streams& TheStreams() {
  static auto* const streams = new Streams;
  return *streams;
}

CUstream_st* NewStream(int device) {
  auto* const stream = new CUstream_st(device);
  Streams& streams = TheStreams();
  std::lock_guard lock(streams.mutex);
  streams.all.push_back(stream);
  return stream;
}

}  // namespace

void Moment::Finish() {
  at_.store(std::chrono::steady_clock::now().time_since_epoch().count(), std::memory_order_release);
  at_.notify_all();
}

void Moment::Wait() const { at_.wait(0, std::memory_order_acquire); }

CUstream_st& StreamOf(cudaStream_t stream) {
  if (stream != nullptr) {
    if (stream->destroyed) Misuse("a stream is used after it was destroyed");
    return *stream;
  }
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  std::vector<CUstream_st*>& legacy = TheStreams().legacy;
  legacy.resize(DeviceCount());
  CUstream_st*& known = legacy[CurrentDevice()];
  if (known == nullptr) known = NewStream(CurrentDevice());
  return *known;
}

std::vector<CUstream_st*> AllStreams() {
  std::lock_guard lock(TheStreams().mutex);
  return TheStreams().all;
}

void WaitForDevices() {
  std::vector<std::pair<CUstream_st*, uint64_t>> ends;
  for (CUstream_st* const stream : AllStreams()) ends.emplace_back(stream, stream->Pushed());
  for (const auto& [stream, end] : ends) stream->WaitUntil(end);
}

}  // namespace software_cuda

using software_cuda::AddNode;
using software_cuda::Call;
using software_cuda::CaptureMutex;
using software_cuda::ForbiddenByCapture;
using software_cuda::Moment;
using software_cuda::MomentPtr;
using software_cuda::StreamOf;
using software_cuda::Submit;

CUstream_st::CUstream_st(int on) : device(on) {
  std::thread([this] { Loop(); }).detach();
}

void CUstream_st::Push(std::function<void()> work) {
  {
    std::lock_guard lock(mutex_);
    works_.push_back(std::move(work));
    ++pushed_;
  }
  changed_.notify_all();
}

void CUstream_st::Loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !works_.empty() || destroyed; });
    if (works_.empty()) return;
    {
      const std::function<void()> work = std::move(works_.front());
      works_.pop_front();
      lock.unlock();
      work();
      // What it holds goes before the stream counts as idle.
    }
    lock.lock();
    ++done_;
    changed_.notify_all();
  }
}

bool CUstream_st::Idle() {
  std::lock_guard lock(mutex_);
  return done_ == pushed_;
}

uint64_t CUstream_st::Pushed() {
  std::lock_guard lock(mutex_);
  return pushed_;
}

void CUstream_st::WaitUntil(uint64_t done) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return done_ >= done; });
}

void CUstream_st::Destroy() {
  {
    std::lock_guard lock(mutex_);
    destroyed = true;
  }
  changed_.notify_all();
}

namespace {

cudaError_t QueryStream(cudaStream_t handle) {
  CUstream_st& stream = StreamOf(handle);
  {
    std::lock_guard lock(CaptureMutex());
    if (stream.session != nullptr) return Refuse(*stream.session);
    if (ForbiddenByCapture()) return cudaErrorStreamCaptureUnsupported;
  }
  return stream.Idle() ? cudaSuccess : cudaErrorNotReady;
}

// What the event was recorded at last; an error while that is not to be asked for.
cudaError_t MomentOf(cudaEvent_t event, MomentPtr* moment) {
  std::lock_guard lock(CaptureMutex());
  if (event->session != nullptr) {
    if (!event->session->ended) Refuse(*event->session);
    return cudaErrorCapturedEvent;
  }
  if (ForbiddenByCapture()) return cudaErrorStreamCaptureUnsupported;
  *moment = event->moment;
  return cudaSuccess;
}

cudaError_t WaitFor(cudaStream_t handle, cudaEvent_t event, bool external) {
  CUstream_st& stream = StreamOf(handle);
  MomentPtr moment;
  {
    std::lock_guard lock(CaptureMutex());
    if (event->session != nullptr) {
      if (event->session->ended) return cudaErrorCapturedEvent;
      if (stream.session != nullptr && stream.session != event->session) {
        stream.session->valid = false;
        return cudaErrorStreamCaptureIsolation;
      }
      if (stream.session == nullptr) stream.ends.clear();
      stream.session = event->session;
      stream.ends.insert(stream.ends.end(), event->behind.begin(), event->behind.end());
      return cudaSuccess;
    }
    if (stream.session != nullptr && !external) {
      stream.session->valid = false;
      return cudaErrorStreamCaptureIsolation;
    }
    // What is waited for is known when the graph is launched.
    if (stream.session != nullptr)
      return AddNode(stream, cudaGraphNodeTypeWaitEvent, nullptr, event);
    moment = event->moment;
  }
  if (moment == nullptr) return cudaSuccess;
  return Submit(handle, cudaGraphNodeTypeWaitEvent, [moment] { moment->Wait(); });
}

}  // namespace

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  const Call call("cudaStreamCreateWithPriority");
  *stream = software_cuda::NewStream(software_cuda::CurrentDevice());
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Call call("cudaStreamDestroy");
  StreamOf(stream).Destroy();
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const Call call("cudaStreamQuery");
  return call.End(QueryStream(stream));
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Call call("cudaStreamSynchronize");
  const cudaError_t status = QueryStream(stream);
  if (status != cudaErrorNotReady) return call.End(status);
  CUstream_st& waited = StreamOf(stream);
  waited.WaitUntil(waited.Pushed());
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const Call call("cudaDeviceSynchronize");
  {
    std::lock_guard lock(CaptureMutex());
    // It would wait for streams that are captured, too: that not even relaxed threads may.
    bool forbidden = ForbiddenByCapture();
    for (CUstream_st* const stream : software_cuda::AllStreams()) {
      if (stream->session == nullptr || stream->device != software_cuda::CurrentDevice()) continue;
      Refuse(*stream->session);
      forbidden = true;
    }
    if (forbidden) return call.End(cudaErrorStreamCaptureUnsupported);
  }
  for (CUstream_st* const stream : software_cuda::AllStreams()) {
    if (stream->device == software_cuda::CurrentDevice()) stream->WaitUntil(stream->Pushed());
  }
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  const Call call("cudaLaunchHostFunc");
  return call.End(Submit(stream, cudaGraphNodeTypeHost, [function, argument] {
    const software_cuda::InHostFunction inside;
    function(argument);
  }));
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  const Call call("cudaEventCreate");
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned flags) {
  const Call call("cudaEventRecord");
  CUstream_st& stream = StreamOf(handle);
  std::lock_guard lock(CaptureMutex());
  if (stream.session == nullptr) {
    const auto moment = std::make_shared<Moment>();
    event->moment = moment;
    event->session = nullptr;
    stream.Push([moment] { moment->Finish(); });
    return cudaSuccess;
  }
  if (!stream.session->valid) return call.End(cudaErrorStreamCaptureInvalidated);
  if (flags == cudaEventRecordExternal)
    return call.End(AddNode(stream, cudaGraphNodeTypeEventRecord, nullptr, event));
  event->session = stream.session;
  event->behind = stream.ends;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Call call("cudaEventQuery");
  MomentPtr moment;
  const cudaError_t status = MomentOf(event, &moment);
  if (status != cudaSuccess) return call.End(status);
  return call.End(moment == nullptr || moment->finished() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Call call("cudaEventSynchronize");
  MomentPtr moment;
  const cudaError_t status = MomentOf(event, &moment);
  if (status == cudaSuccess && moment != nullptr) moment->Wait();
  return call.End(status);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const Call call("cudaEventElapsedTime");
  std::lock_guard lock(CaptureMutex());
  if (begin->moment == nullptr || end->moment == nullptr)
    return call.End(cudaErrorInvalidResourceHandle);
  if (!begin->moment->finished() || !end->moment->finished()) return call.End(cudaErrorNotReady);
  *milliseconds = static_cast<float>(
      static_cast<double>(end->moment->nanoseconds() - begin->moment->nanoseconds()) / 1e6);
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  const Call call("cudaStreamWaitEvent");
  return call.End(WaitFor(stream, event, flags == cudaEventWaitExternal));
}

}  // extern "C"
