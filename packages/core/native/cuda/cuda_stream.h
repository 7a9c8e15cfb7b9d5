// A stream of a cuda device. Commands launch their work when they are enqueued; what JavaScript
// waits for is waited for by a native thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "cuda/completion_thread.h"
#include "cuda/cuda_graph.h"
#include "cuda/cuda_recording.h"
#include "cuda/device.h"
#include "cuda/owners_graph.h"
#include "runtime/stream.h"

namespace moe_ep::cuda {

class CudaStream final : public Stream, public Submitter, public Dependent {
 public:
  // Throws.
  static std::shared_ptr<CudaStream> Create(const moe_ep_core_api* api, Device& device);
  // A stream that somebody else made and keeps until this one was closed and awaited.
  static std::shared_ptr<CudaStream> Wrap(const moe_ep_core_api* api, Device& device,
                                          cudaStream_t stream);
  ~CudaStream() override;

  // For work that does not come through Enqueue; from then on the stream counts as always busy.
  cudaStream_t Share();

  bool WhenDone(std::function<void(MaybeFailure)> then) override;
  CommandPtr DelayCommand(int64_t microseconds) override;
  CommandPtr FailCommand(Failure failure) override;
  void Close(bool abort) override;
  void Join() override;
  const uint32_t* abort_word() const override { return abort_->word(); }
  bool Idle() override;

  bool Marker(EventPtr* marker) override;
  bool Busy() override;
  bool Captured() override;
  void Skip() override;

  // For running commands.
  void Fail(Failure failure) override;
  void MayFail();
  // Where the command's last kernel copies the failure record to; null in a capture.
  moe_ep_failure_record* Snapshot();
  void* GetScratch(uint64_t key, uint64_t bytes);
  // As of the device, for a command that has launched its work but not ended.
  void Retire(std::function<void()> then);

 protected:
  bool Submit(CommandPtr command) override;
  std::shared_ptr<Recording> Mark() override;
  bool Await(const std::shared_ptr<Recording>& recording, bool take_failure) override;
  bool OwnerCaptures() override;
  bool SharesCapture(Recording& recording) override;
  MaybeFailure Replay(const std::shared_ptr<const Graph>& graph) override;
  MaybeFailure CaptureBegun(Capture& capture) override;
  MaybeFailure CaptureJoined(Capture& capture) override;
  void CaptureCommand(const CommandPtr& command) override;
  void CaptureRecord(Capture& capture, const std::shared_ptr<Event>& event, bool timed) override;
  void CaptureWait(Capture& capture, const std::shared_ptr<Event>& event) override;
  MaybeFailure CaptureEnded(Capture& capture, bool valid) override;

 private:
  CudaStream(const moe_ep_core_api* api, Device& device, cudaStream_t stream, bool owned);

  // Around work that goes to the stream, which is counted once it is there. Counted before, a
  // marker that another thread records in between would be taken for one behind that work.
  class Submission {
   public:
    explicit Submission(CudaStream& stream) : stream_(stream) { stream.device_.BeginLaunch(); }
    ~Submission() {
      stream_.CountSubmission();
      stream_.device_.EndLaunch();
    }
    Submission(const Submission&) = delete;
    Submission& operator=(const Submission&) = delete;

   private:
    CudaStream& stream_;
  };
  // Of a stream that is not owned the marker is kept up to date: when somebody asks its owner may
  // capture it, or have ended it.
  // With marker_mutex_. False where the device refuses; throws.
  bool RecordMarker();
  bool MarkerPassed() const;
  bool ForeignCapture() const;

  void CountSubmission() { submitted_.fetch_add(1, std::memory_order_release); }

  void Run(const CommandPtr& command);
  EventPtr RecordEvent();
  EventPtr RecordInLaunches();
  CudaRecording::Parts NewParts();  // all but the events and what is copied for them
  CudaRecording::Parts PartsOfMark();
  std::shared_ptr<Recording> MarkIn(OwnersGraph& owners);
  CaptureInfo CaptureByOwner() const;  // none where the library captures
  // What work that goes to the owner's graph has to leave there; null where nobody captures.
  // Throws.
  std::shared_ptr<OwnersGraph> OwnersCapture();
  moe_ep_failure_record* failure() const;
  bool EnterCapture(std::shared_ptr<CudaGraph> graph);
  void LeaveCapture();
  void ShareAborts(const CudaRecording& recording);
  void AwaitDevice(const CudaRecording& recording, bool take_failure);

  const moe_ep_core_api* const api_;
  Device& device_;
  cudaStream_t const stream_;
  const bool owned_;
  const std::shared_ptr<moe_ep_failure_record> failure_;
  const AbortPtr abort_;
  const std::shared_ptr<moe_ep_failure_record> abort_failure_;  // what an abort says
  const std::shared_ptr<CompletionThread> completions_;
  Scratch scratch_;

  // JavaScript's thread only.
  bool may_fail_ = false;
  uint64_t takes_ = 0;                               // how often the failure was taken
  std::shared_ptr<moe_ep_failure_record> snapshot_;  // made by the newest work; null: not made
  Aborts awaited_;                     // of streams that were waited for since the last await
  MaybeFailure host_failure_;          // one that could not be brought to the device
  std::weak_ptr<OwnersGraph> owners_;  // of the newest capture by the owner
  OwnersGraph* current_ = nullptr;     // while a command runs that goes there
  bool owner_may_fail_ = false;        // launches that the owner makes may, at any time

  std::mutex marker_mutex_;  // guards what follows: other threads ask for markers
  std::shared_ptr<CudaGraph> captured_;
  std::atomic<uint64_t> submitted_ = 0;
  uint64_t marked_ = 0;
  EventPtr marker_;
  bool shared_;
  bool left_ = false;           // a wrapped stream that was closed
  bool marked_at_end_ = false;  // its marker is behind all of its work
};

}  // namespace moe_ep::cuda
