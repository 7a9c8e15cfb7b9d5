// What the parts of the software CUDA runtime share. It stands in for cudart where suites run
// without a GPU: memory of the host, a thread for each stream, kernels as functions. It is stricter
// than the real one: what is undefined there, such as using a stream that was destroyed, ends the
// process here.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace software_cuda {

// Ends the process.
[[noreturn]] void Misuse(const std::string& what);

// Every call begins with one of these and gives back what its End() gives. Misuse where the runtime
// may not be called: from host functions, and once exit handlers have taken it down.
class Call {
 public:
  explicit Call(const char* name);
  // Remembers an error for cudaGetLastError().
  cudaError_t End(cudaError_t status) const;
  const char* name() const { return name_; }

 private:
  const char* const name_;
};
// While a thread is in one it may not call the runtime.
struct InHostFunction {
  InHostFunction();
  ~InHostFunction();
};

int CurrentDevice();
int DeviceCount();

// A point of a stream's work, reached once.
class Moment {
 public:
  void Finish();
  bool finished() const { return at_.load(std::memory_order_acquire) != 0; }
  void Wait() const;
  int64_t nanoseconds() const { return at_.load(std::memory_order_acquire); }

 private:
  std::atomic<int64_t> at_ = 0;
};
using MomentPtr = std::shared_ptr<Moment>;

using Node = CUgraphNode_st;
// A capture that goes on, or went on: events can outlive it.
struct Session {
  cudaStreamCaptureMode mode;
  std::thread::id thread;  // that began it
  cudaStream_t origin;
  unsigned long long id;
  std::unique_ptr<CUgraph_st> graph;
  bool valid = true;
  bool ended = false;
};
using SessionPtr = std::shared_ptr<Session>;

// Guards sessions, what streams and events hold of them, and what events were recorded at.
std::mutex& CaptureMutex();
// The calling thread may not do what a capture forbids, and the capture is lost if it tries: events
// and streams that are asked or waited for, memory that is made or freed. With the mutex.
bool ForbiddenByCapture();
// Nobody may ask for a captured stream's end. With the mutex; the session is lost.
cudaError_t Refuse(Session& session);

// Appends work to a stream or, while that is captured, to the graph.
cudaError_t Submit(cudaStream_t stream, cudaGraphNodeType type, std::function<void()> work);
// To the graph of a stream that is captured; with the mutex. `event` is one that the graph records
// or waits for.
cudaError_t AddNode(CUstream_st& stream, cudaGraphNodeType type, std::function<void()> work,
                    cudaEvent_t event);

// Null for the legacy stream gives the current device's. Misuse for a stream that was destroyed.
CUstream_st& StreamOf(cudaStream_t stream);
// Of all devices, also those that were destroyed.
std::vector<CUstream_st*> AllStreams();
// For all that was enqueued before on any of them.
void WaitForDevices();

// The allocation that a range lies in; misuse where it only begins in one.
struct Allocation {
  uint8_t* base;
  uint64_t bytes;
  cudaMemoryType type;
  int device;
  int descriptor;  // of its bytes; -1: none
  // What made it, and so what takes it back.
  enum class Origin { kMalloc, kHostAlloc, kHostRegister, kIpcOpen, kMap } origin;
};
bool FindAllocation(const void* pointer, uint64_t bytes, Allocation* found);
void AddAllocation(const Allocation& allocation);
Allocation TakeAllocation(const void* base, Allocation::Origin origin, const char* who);
// Of the device's own memory, not of what is mapped of others'.
uint64_t AllocatedBytes(int device);
void CountMappedBytes(int device, int64_t bytes);

// A descriptor of so many zeroed bytes; -1 when there are none.
int NewBytes(uint64_t bytes);

inline constexpr int kMultiprocessors = 4;
inline constexpr uint64_t kDeviceBytes = uint64_t{3} << 30;

}  // namespace software_cuda

struct CUstream_st {
  explicit CUstream_st(int device);

  const int device;
  std::atomic<bool> destroyed = false;

  void Push(std::function<void()> work);
  bool Idle();
  // How much was, and until so much of it is done: nothing that comes later is waited for.
  uint64_t Pushed();
  void WaitUntil(uint64_t done);
  // What is queued still runs.
  void Destroy();

  // With the mutex of captures.
  software_cuda::SessionPtr session;
  std::vector<CUgraphNode_st*> ends;  // what the next node comes after

 private:
  void Loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> works_;
  uint64_t pushed_ = 0;
  uint64_t done_ = 0;
};

// Both with the mutex of captures.
struct CUevent_st {
  software_cuda::MomentPtr moment;      // of its newest record; null: never recorded
  software_cuda::SessionPtr session;    // of the capture that recorded it
  std::vector<CUgraphNode_st*> behind;  // of that capture
};

struct CUgraphNode_st {
  cudaGraphNodeType type;
  std::function<void()> work;
  cudaEvent_t event = nullptr;  // recorded, or waited for
  std::vector<CUgraphNode_st*> after;
};

// Something of the user's that graphs hold. The last reference to go has it destroyed.
struct CUuserObject_st {
  void* const held;
  const cudaHostFn_t destroy;
  std::atomic<unsigned> references;
};

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;  // in an order they can run in
  // Shared with what is made of the graph, and with launches of that.
  std::vector<std::shared_ptr<void>> objects;
};
