// The table that other addons take at load.
#include <memory>

#include "binding/handles.h"
#include "cpu/cpu_stream.h"
#include "runtime/device_work.h"
#if MOE_EP_CUDA
#include "cuda/cuda_stream.h"
#endif

namespace moe_ep {
namespace {

Stream* StreamOf(moe_ep_exec* exec) { return static_cast<Stream*>(exec->state); }
CpuStream* CpuStreamOf(moe_ep_exec* exec) { return static_cast<CpuStream*>(StreamOf(exec)); }
#if MOE_EP_CUDA
cuda::CudaStream* CudaStreamOf(moe_ep_exec* exec) {
  return static_cast<cuda::CudaStream*>(StreamOf(exec));
}
#endif

// The opaque stream of the table is the JavaScript handle's shared pointer.
StreamHandle* HandleOf(moe_ep_stream* stream) { return reinterpret_cast<StreamHandle*>(stream); }

// Device memory of another addon.
struct ForeignBytes {
  int32_t device;
  void (*deleter)(void*);
  void* context;
};
void DeleteWhenIdle(void* self) {
  const std::unique_ptr<ForeignBytes> bytes(static_cast<ForeignBytes*>(self));
  RunWhenDeviceIsIdle(bytes->device,
                      [deleter = bytes->deleter, context = bytes->context] { deleter(context); });
}

const moe_ep_core_api kApi = {
    .size = sizeof(moe_ep_core_api),
    .major = MOE_EP_ABI_MAJOR,
    .minor = MOE_EP_ABI_MINOR,
    .memory_create =
        [](void* data, uint64_t bytes, void (*deleter)(void*), void* context, int32_t device) {
          if (device < 0) return new moe_ep_memory(data, bytes, deleter, context);
          return new moe_ep_memory(data, bytes, DeleteWhenIdle,
                                   new ForeignBytes{device, deleter, context}, device);
        },
    .memory_retain = [](moe_ep_memory* memory) { memory->Retain(); },
    .memory_release = [](moe_ep_memory* memory) { memory->Release(); },
    .memory_pin = [](moe_ep_memory* memory) { return memory->Pin(); },
    .memory_unpin = [](moe_ep_memory* memory) { memory->Unpin(); },
    .memory_bytes = [](const moe_ep_memory* memory) { return memory->bytes(); },
    .memory_to_js =
        [](napi_env env, moe_ep_memory* memory, napi_value* result) {
          memory->Retain();
          *result = WrapMemory(env, {memory});
          return napi_ok;
        },
    .memory_from_js = [](napi_env env, napi_value value) -> moe_ep_memory* {
      const auto* handle = TryUnwrap<MemoryHandle>(env, value, kMemoryTag);
      if (handle == nullptr) return nullptr;
      IsOpen(env, handle->memory, handle->borrowed);
      return handle->memory;
    },
    .tensor_from_js = [](napi_env env, napi_value value) -> const moe_ep_tensor* {
      const auto* handle = TryUnwrap<TensorHandle>(env, value, kTensorTag);
      if (handle == nullptr) return nullptr;
      // The caller pins, which a closed memory refuses.
      IsOpen(env, handle->tensor.memory, handle->borrowed);
      return &handle->tensor;
    },
    .stream_from_js =
        [](napi_env env, napi_value value) {
          return reinterpret_cast<moe_ep_stream*>(TryUnwrap<StreamHandle>(env, value, kStreamTag));
        },
    .stream_enqueue =
        [](moe_ep_stream* stream, moe_ep_command command) {
          return (*HandleOf(stream))->Enqueue(std::make_shared<Command>(command));
        },
    .parallel_for = [](moe_ep_exec* exec, int64_t count, int64_t grain,
                       void (*body)(void*, int64_t, int64_t),
                       void* self) { CpuStreamOf(exec)->ParallelFor(count, grain, body, self); },
    .fail = [](moe_ep_exec* exec, const char* code,
               const char* message) { StreamOf(exec)->Fail({code, message}); },
    .abort_word = [](moe_ep_exec* exec) { return StreamOf(exec)->abort_word(); },
    .stream_device = [](moe_ep_stream* stream) -> int32_t { return (*HandleOf(stream))->device(); },
#if MOE_EP_CUDA
    .cuda_may_fail = [](moe_ep_exec* exec) { CudaStreamOf(exec)->MayFail(); },
    .cuda_scratch = [](moe_ep_exec* exec, uint64_t key,
                       uint64_t bytes) { return CudaStreamOf(exec)->GetScratch(key, bytes); },
    .cuda_retire =
        [](moe_ep_exec* exec, void* self, void (*destroy)(void*)) {
          CudaStreamOf(exec)->Retire([self, destroy] { destroy(self); });
        },
    .cuda_snapshot = [](moe_ep_exec* exec) { return CudaStreamOf(exec)->Snapshot(); },
#else
    .cuda_may_fail = nullptr,
    .cuda_scratch = nullptr,
    .cuda_retire = nullptr,
    .cuda_snapshot = nullptr,
#endif
};

}  // namespace

const moe_ep_core_api* CoreApi() { return &kApi; }

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  // Runs before the environment's values go away, also for a terminated worker.
  env.AddCleanupHook([](Environment* environment) { environment->Shutdown(); },
                     &Environment::Of(env));
  RegisterMemory(env, exports);
  RegisterStream(env, exports);
  RegisterGraph(env, exports);
  RegisterCopy(env, exports);
  RegisterCuda(env, exports);
  exports.Set("abiVersion", Napi::Number::New(env, MOE_EP_ABI_MAJOR));
  Napi::Value table =
      Napi::External<moe_ep_core_api>::New(env, const_cast<moe_ep_core_api*>(&kApi));
  napi_type_tag_object(env, table, &kCoreApiTag);
  exports.Set("coreApi", table);
  return exports;
}

}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_core, Initialize)
