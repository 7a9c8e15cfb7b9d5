// The C table that core's addon exports to the other addons: shared state (memory, tensors,
// streams) lives once, here.
//
// An addon receives the table as a type-tagged external in its initialize() call and refuses
// another major version. Minor versions only append; `size` tells how much of the table is there.
#pragma once

#include <node_api.h>
#include <stdint.h>

#define MOE_EP_ABI_MAJOR 2
#define MOE_EP_ABI_MINOR 0
#define MOE_EP_MAX_DIMS 6

extern "C" {

struct moe_ep_core_api;
struct moe_ep_memory;
struct moe_ep_stream;

// A tensor as JavaScript made it. `data` is valid only while `memory` is pinned.
struct moe_ep_tensor {
  uint32_t size;
  int32_t dtype;   // moe_ep::DType
  int32_t device;  // -1: cpu, otherwise the CUDA ordinal
  int32_t dims;
  int64_t shape[MOE_EP_MAX_DIMS];
  int64_t strides[MOE_EP_MAX_DIMS];  // in elements
  moe_ep_memory* memory;
  uint64_t byte_offset;
};

// How device code tells of a failure: a record in device memory that later kernels of the stream
// look at before they write anything, and that the next await of the stream turns into an error.
// moe_ep/cuda/failure.cuh has the device side.
#define MOE_EP_FAILURE_VALUES 6
struct moe_ep_failure_text {
  char code[48];
  char message[976];
};
typedef void (*moe_ep_describe_failure)(const int64_t* values, moe_ep_failure_text* text);
struct moe_ep_failure_record {
  uint32_t failed;
  uint32_t reserved;
  moe_ep_describe_failure describe;  // of the addon whose kernel failed; called on the host
  int64_t values[MOE_EP_FAILURE_VALUES];
};

// What a running command sees of the stream that runs it. On the cpu the command does its work when
// it runs; on a cuda device it launches the work onto `cuda_stream` and returns.
struct moe_ep_exec {
  const moe_ep_core_api* api;
  void* state;
  int32_t device;     // -1: cpu, otherwise the CUDA ordinal, which is the thread's current device
  void* cuda_stream;  // cudaStream_t; null on the cpu and for CUDA's default stream
  moe_ep_failure_record* failure;  // the stream's, in device memory; null on the cpu
};

// A piece of work. `run` may be called many times (graph replay); `destroy` once, on any thread.
// Neither it nor the body of a parallel_for may let a C++ exception out: moe_ep/command.h sees to
// that.
struct moe_ep_command {
  void* self;
  void (*run)(void* self, moe_ep_exec* exec);
  void (*destroy)(void* self);
};

struct moe_ep_core_api {
  uint32_t size;
  uint16_t major;
  uint16_t minor;

  // Memory: reference counts keep the record, pins keep the bytes mapped. A closed memory cannot be
  // pinned any more and its bytes go away with the last pin.
  // `device`: -1 for the cpu's, otherwise the CUDA ordinal; device memory's deleter is called when
  // all work that was enqueued on the device before is done, and nothing else runs there: it may
  // make the driver wait.
  moe_ep_memory* (*memory_create)(void* data, uint64_t bytes, void (*deleter)(void* context),
                                  void* context, int32_t device);
  void (*memory_retain)(moe_ep_memory*);
  void (*memory_release)(moe_ep_memory*);
  void* (*memory_pin)(moe_ep_memory*);  // null when closed
  void (*memory_unpin)(moe_ep_memory*);
  uint64_t (*memory_bytes)(const moe_ep_memory*);
  napi_status (*memory_to_js)(napi_env, moe_ep_memory*,
                              napi_value* result);  // takes a reference of its own

  // Views of JavaScript handles; null when the value is not one of ours.
  moe_ep_memory* (*memory_from_js)(napi_env, napi_value);
  const moe_ep_tensor* (*tensor_from_js)(napi_env, napi_value);
  moe_ep_stream* (*stream_from_js)(napi_env, napi_value);

  // Appends work; false when the stream is closed (the command is then destroyed). Takes ownership
  // either way.
  bool (*stream_enqueue)(moe_ep_stream*, moe_ep_command);

  // For running commands. parallel_for splits [0, count) into contiguous parts of at least `grain`
  // for the stream's threads.
  void (*parallel_for)(moe_ep_exec*, int64_t count, int64_t grain,
                       void (*body)(void*, int64_t begin, int64_t end), void*);
  void (*fail)(moe_ep_exec*, const char* code, const char* message);
  // Non-zero once the stream's owner went away: waits must end soon. Device code can read it too.
  const uint32_t* (*abort_word)(moe_ep_exec*);

  // CUDA ordinal of the stream's device, -1 for the cpu.
  int32_t (*stream_device)(moe_ep_stream*);
  // Says that the command may write the failure record, which makes the stream's awaits look at it.
  void (*cuda_may_fail)(moe_ep_exec*);
  // `bytes` of device memory that stays as it is until work enqueued later on this stream asks for
  // scratch again: for what one command's launches hand to one another. Zeroed when it is new; the
  // commands of one addon leave it zeroed again. `key` tells addons' uses apart. Null: out of
  // memory.
  void* (*cuda_scratch)(moe_ep_exec*, uint64_t key, uint64_t bytes);
  // Keeps `self` until all work that was enqueued on the device so far is done.
  void (*cuda_retire)(moe_ep_exec*, void* self, void (*destroy)(void* self));
  // Memory of the host, zeroed, that the command's last kernel copies the stream's failure record
  // to when it ends and the stream has failed: an event behind it needs no kernel for that. Null:
  // not wanted.
  moe_ep_failure_record* (*cuda_snapshot)(moe_ep_exec*);
};
}
