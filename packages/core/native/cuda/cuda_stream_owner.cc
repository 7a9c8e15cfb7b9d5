// Captures of a wrapped stream by its owner, who does not tell.
#include <memory>
#include <utility>

#include "cuda/cuda_stream.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

CaptureInfo CudaStream::CaptureByOwner() const {
  if (!shared_ || captured_ != nullptr) return {};
  device_.MakeCurrent();
  return CaptureOf(stream_);
}

bool CudaStream::OwnerCaptures() { return CaptureByOwner().graph != nullptr; }

std::shared_ptr<OwnersGraph> CudaStream::OwnersCapture() {
  const CaptureInfo capture = CaptureByOwner();
  if (capture.graph == nullptr) return nullptr;
  std::shared_ptr<OwnersGraph> owners = owners_.lock();
  if (owners == nullptr || owners->id() != capture.id)
    owners_ = owners = OwnersGraph::Of(capture, device_, failure_, abort_);
  return owners;
}

// A node of the graph that is captured: each launch records the event anew. Until the first one it
// is what it is now, and not what it was to others.
EventPtr CudaStream::RecordInLaunches() {
  EventPtr event = device_.NewEvent();
  Check(cudaEventRecord(event.get(), device_.auxiliary()), "cudaEventRecord");
  Check(cudaEventRecordWithFlags(event.get(), stream_, cudaEventRecordExternal),
        "cudaEventRecordWithFlags");
  return event;
}

std::shared_ptr<Recording> CudaStream::MarkIn(OwnersGraph& owners) {
  device_.MakeCurrent();
  const RelaxedCaptures relaxed;
  const Submission submission(*this);
  CudaRecording::Parts parts = NewParts();
  parts.time = RecordInLaunches();
  // Always, for the owner launches when it likes: behind failures of other work, and after aborts
  // of streams that this one waits for. All of it, for what an earlier launch said is over. Who
  // waits for a launch while the next one runs may be told of that one's failure.
  parts.failure = NewPinned<moe_ep_failure_record>(device_);
  Check(cudaMemcpyAsync(parts.failure.get(), failure_.get(), sizeof(*parts.failure),
                        cudaMemcpyDefault, stream_),
        "cudaMemcpyAsync");
  parts.done = RecordInLaunches();
  // Behind the others, which are work of the graph and have to be joined too.
  parts.join = RecordEvent();
  parts.capture = owners.id();
  parts.captured = [self = weak_from_this(), id = owners.id()] {
    const auto stream = std::static_pointer_cast<CudaStream>(self.lock());
    return stream != nullptr && !stream->closed() && stream->CaptureByOwner().id == id;
  };
  const auto recording = std::make_shared<CudaRecording>(std::move(parts));
  owners.Keep(recording);
  return recording;
}

bool CudaStream::SharesCapture(Recording& recording) {
  const auto* const cuda = dynamic_cast<CudaRecording*>(&recording);
  return cuda != nullptr && cuda->parts().join != nullptr &&
         CaptureByOwner().id == cuda->parts().capture;
}

}  // namespace moe_ep::cuda
