// Memory and tensor handles.
#include <cstring>

#include "binding/handles.h"
#include "moe_ep/dtype.h"

namespace moe_ep {
namespace {

// JavaScript memory that native work uses: the reference is dropped on the thread that owns it.
struct BorrowedBuffer {
  std::shared_ptr<Mailbox> mailbox;
  napi_ref reference;
};

uint64_t ByteCount(const Napi::Value& value) {
  const double bytes = value.As<Napi::Number>().DoubleValue();
  if (!(bytes >= 0) || bytes > 9007199254740992.0) Throw(value.Env(), "ERR_MOE_EP_ARGUMENT", "byteLength out of range");
  return static_cast<uint64_t>(bytes);
}

Napi::Value Allocate(const Napi::CallbackInfo& info) {
  const uint64_t bytes = ByteCount(info[0]);
  moe_ep_memory* memory = AllocateMemory(bytes);
  if (memory == nullptr) {
    Throw(info.Env(), "ERR_MOE_EP_OUT_OF_MEMORY", "cannot allocate " + std::to_string(bytes) + " bytes");
  }
  return WrapMemory(info.Env(), memory);
}

// wrapBuffer(arrayBuffer, byteOffset, byteLength)
Napi::Value WrapBuffer(const Napi::CallbackInfo& info) {
  static uint8_t nothing = 0;
  Napi::Env env = info.Env();
  auto buffer = info[0].As<Napi::ArrayBuffer>();
  // An empty ArrayBuffer has no address; a view of nothing still needs one.
  auto* base = buffer.Data() == nullptr ? &nothing : static_cast<uint8_t*>(buffer.Data());
  auto* data = base + ByteCount(info[1]);
  napi_ref reference;
  napi_create_reference(env, buffer, 1, &reference);
  auto* borrowed = new BorrowedBuffer{Environment::Of(env).mailbox(), reference};
  return WrapMemory(env, new moe_ep_memory(data, ByteCount(info[2]),
                                           [](void* context) {
                                             auto* held = static_cast<BorrowedBuffer*>(context);
                                             held->mailbox->DropReference(held->reference);
                                             delete held;
                                           },
                                           borrowed));
}

// wrapPointer(address, byteLength): memory that somebody else owns and keeps.
Napi::Value WrapPointer(const Napi::CallbackInfo& info) {
  bool lossless = false;
  const uint64_t address = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless || address == 0) Throw(info.Env(), "ERR_MOE_EP_ARGUMENT", "pointer: expected a non-zero 64-bit address");
  return WrapMemory(info.Env(), new moe_ep_memory(reinterpret_cast<void*>(address), ByteCount(info[1]), nullptr, nullptr));
}

Napi::Value MemoryPointer(const Napi::CallbackInfo& info) {
  const auto& memory = Unwrap<moe_ep_memory>(info[0], kMemoryTag, "memory");
  return Napi::BigInt::New(info.Env(), reinterpret_cast<uint64_t>(memory.data()));
}

Napi::Value MemoryByteLength(const Napi::CallbackInfo& info) {
  const auto& memory = Unwrap<moe_ep_memory>(info[0], kMemoryTag, "memory");
  return Napi::Number::New(info.Env(), static_cast<double>(memory.bytes()));
}

Napi::Value MemoryArrayBuffer(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto& memory = Unwrap<moe_ep_memory>(info[0], kMemoryTag, "memory");
  if (memory.closed()) Throw(env, "ERR_MOE_EP_RELEASED", "the memory was closed");
  if (memory.bytes() == 0) return Napi::ArrayBuffer::New(env, 0);
  memory.Retain();
  napi_value result;
  const napi_status status = napi_create_external_arraybuffer(
      env, memory.data(), memory.bytes(), [](napi_env, void*, void* hint) { static_cast<moe_ep_memory*>(hint)->Release(); },
      &memory, &result);
  if (status != napi_ok) {
    memory.Release();
    Throw(env, "ERR_MOE_EP_UNSUPPORTED", "this runtime cannot view native memory as an ArrayBuffer");
  }
  return Napi::Value(env, result);
}

// memoryClose(handle, arrayBuffer | undefined): the view is detached first, so that no JavaScript sees unmapped bytes.
Napi::Value MemoryClose(const Napi::CallbackInfo& info) {
  auto& memory = Unwrap<moe_ep_memory>(info[0], kMemoryTag, "memory");
  if (info[1].IsArrayBuffer() && memory.bytes() > 0) napi_detach_arraybuffer(info.Env(), info[1]);
  memory.Close();
  return info.Env().Undefined();
}

// createTensor(memory, byteOffset, dtype, shape, strides)
Napi::Value CreateTensor(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto& memory = Unwrap<moe_ep_memory>(info[0], kMemoryTag, "memory");
  const auto shape = info[3].As<Napi::Array>();
  const auto strides = info[4].As<Napi::Array>();
  if (shape.Length() > MOE_EP_MAX_DIMS) Throw(env, "ERR_MOE_EP_ARGUMENT", "shape: too many dimensions");
  moe_ep_tensor tensor = {};
  tensor.size = sizeof(moe_ep_tensor);
  tensor.dtype = info[2].As<Napi::Number>().Int32Value();
  tensor.device = -1;
  tensor.dims = static_cast<int32_t>(shape.Length());
  for (int d = 0; d < tensor.dims; ++d) {
    tensor.shape[d] = shape.Get(d).As<Napi::Number>().Int64Value();
    tensor.strides[d] = strides.Get(d).As<Napi::Number>().Int64Value();
  }
  tensor.memory = &memory;
  tensor.byte_offset = ByteCount(info[1]);
  memory.Retain();
  return Wrap<moe_ep_tensor>(env, kTensorTag, new moe_ep_tensor(tensor), [](moe_ep_tensor* held) {
    held->memory->Release();
    delete held;
  });
}

}  // namespace

Napi::Value WrapMemory(Napi::Env env, moe_ep_memory* memory) {
  return Wrap<moe_ep_memory>(env, kMemoryTag, memory, [](moe_ep_memory* held) { held->Release(); });
}

void RegisterMemory(Napi::Env env, Napi::Object exports) {
  exports.Set("allocate", Napi::Function::New(env, Allocate));
  exports.Set("wrapBuffer", Napi::Function::New(env, WrapBuffer));
  exports.Set("wrapPointer", Napi::Function::New(env, WrapPointer));
  exports.Set("memoryPointer", Napi::Function::New(env, MemoryPointer));
  exports.Set("memoryByteLength", Napi::Function::New(env, MemoryByteLength));
  exports.Set("memoryArrayBuffer", Napi::Function::New(env, MemoryArrayBuffer));
  exports.Set("memoryClose", Napi::Function::New(env, MemoryClose));
  exports.Set("createTensor", Napi::Function::New(env, CreateTensor));
}

}  // namespace moe_ep
