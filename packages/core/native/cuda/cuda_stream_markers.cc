// Where the work of a cuda stream ends, for the device, which gives nothing back before that.
#include <mutex>
#include <utility>

#include "cuda/cuda_stream.h"

namespace moe_ep::cuda {

// Whether the stream is part of a capture that is not this library's, or nobody can tell.
bool CudaStream::ForeignCapture() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t result = cudaStreamIsCapturing(stream_, &status);
  if (result != cudaSuccess) cudaGetLastError();
  return result != cudaSuccess || status != cudaStreamCaptureStatusNone;
}

// With marker_mutex_.
bool CudaStream::MarkerPassed() const {
  if (left_ && !marked_at_end_ && !ended()) return false;
  return marker_ == nullptr || PassageOf(marker_) != Passage::kAhead;
}

bool CudaStream::Idle() {
  device_.MakeCurrent();
  const RelaxedCaptures relaxed;
  // Who holds it may be waiting for the stream itself.
  const std::unique_lock lock(marker_mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return false;
  if (left_) return MarkerPassed();
  const bool idle = cudaStreamQuery(stream_) != cudaErrorNotReady;
  cudaGetLastError();
  return idle;
}

// With marker_mutex_. False where it cannot be done now: an event that is recorded while somebody
// captures is part of that, and tells of nothing.
bool CudaStream::RecordMarker() {
  const uint64_t submitted = submitted_.load(std::memory_order_acquire);
  if (submitted == marked_ && !shared_) return true;
  if (ForeignCapture()) return false;
  EventPtr event = device_.NewEvent();
  const cudaError_t status = cudaEventRecord(event.get(), stream_);
  cudaGetLastError();
  if (status != cudaSuccess || ForeignCapture()) return false;
  marked_ = submitted;
  marker_ = std::move(event);
  return true;
}

bool CudaStream::Marker(EventPtr* marker) {
  std::lock_guard lock(marker_mutex_);
  if (left_ && !marked_at_end_ && !ended()) return false;
  const bool stands = captured_ != nullptr || ended() || left_;
  if (!stands && !RecordMarker()) return false;
  *marker = marker_;
  return true;
}

bool CudaStream::Captured() {
  std::lock_guard lock(marker_mutex_);
  if (captured_ != nullptr) return true;
  return shared_ && !ended() && !left_ && ForeignCapture();
}

bool CudaStream::Busy() {
  std::lock_guard lock(marker_mutex_);
  if (captured_ != nullptr || ended() || left_) return !MarkerPassed();
  // A query would end a capture by the stream's owner.
  if (ForeignCapture()) return true;
  const bool busy = cudaStreamQuery(stream_) == cudaErrorNotReady;
  cudaGetLastError();
  return busy;
}

}  // namespace moe_ep::cuda
