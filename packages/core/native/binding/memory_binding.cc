// Memory and tensor handles.
#include <utility>

#include "binding/handles.h"
#include "binding/memory_view.h"
#include "cpu/cpu_memory.h"
#include "moe_ep/dtype.h"

namespace moe_ep {
namespace {

// JavaScript memory that native work uses: the reference is dropped on the thread that owns it.
struct BorrowedBuffer {
  std::shared_ptr<Mailbox> mailbox;
  napi_ref reference;
};

// The garbage collector sees small handles only: it must hear of the bytes behind them.
void AdjustExternal(napi_env env, int64_t bytes) {
  int64_t total = 0;
  if (bytes != 0) napi_adjust_external_memory(env, bytes, &total);
}

Napi::Value Allocate(const Napi::CallbackInfo& info) {
  const uint64_t bytes = ByteCount(info[0]);
  moe_ep_memory* memory = AllocateMemory(bytes);
  if (memory == nullptr) {
    Throw(info.Env(), "ERR_MOE_EP_OUT_OF_MEMORY",
          "cannot allocate " + std::to_string(bytes) + " bytes");
  }
  return WrapMemory(info.Env(), {memory, nullptr, static_cast<int64_t>(bytes)});
}

// wrapBuffer(arrayBuffer, byteOffset, byteLength)
Napi::Value WrapBuffer(const Napi::CallbackInfo& info) {
  static uint8_t nothing = 0;
  Napi::Env env = info.Env();
  auto buffer = info[0].As<Napi::ArrayBuffer>();
  const uint64_t offset = ByteCount(info[1]);
  const uint64_t bytes = ByteCount(info[2]);
  if (!buffer.IsArrayBuffer() || buffer.IsDetached() || offset + bytes > buffer.ByteLength()) {
    Throw(env, "ERR_MOE_EP_ARGUMENT", "expected a range of an ArrayBuffer that is not detached");
  }
  // An empty ArrayBuffer has no address; a view of nothing still needs one.
  auto* base = buffer.Data() == nullptr ? &nothing : static_cast<uint8_t*>(buffer.Data());
  napi_ref reference;
  if (napi_create_reference(env, buffer, 1, &reference) != napi_ok) {
    throw Napi::Error::New(env, "cannot refer to the ArrayBuffer");
  }
  auto* borrowed = new BorrowedBuffer{Environment::Of(env).mailbox(), reference};
  auto* memory = new moe_ep_memory(
      base + offset, bytes,
      [](void* context) {
        auto* held = static_cast<BorrowedBuffer*>(context);
        held->mailbox->Post([reference = held->reference](Napi::Env env) {
          napi_delete_reference(env, reference);
        });
        delete held;
      },
      borrowed);
  return WrapMemory(env, {memory, reference});
}

// wrapPointer(device, address, byteLength): memory that somebody else owns and keeps.
Napi::Value WrapPointer(const Napi::CallbackInfo& info) {
  bool lossless = false;
  const int device = info[0].As<Napi::Number>().Int32Value();
  const uint64_t address = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless || address == 0) {
    Throw(info.Env(), "ERR_MOE_EP_ARGUMENT", "pointer: expected a non-zero 64-bit address");
  }
  auto* data = reinterpret_cast<void*>(address);
  return WrapMemory(info.Env(),
                    {new moe_ep_memory(data, ByteCount(info[2]), nullptr, nullptr, device)});
}

Napi::Value MemoryPointer(const Napi::CallbackInfo& info) {
  const MemoryHandle& handle = MemoryArgument(info[0]);
  return Napi::BigInt::New(info.Env(), reinterpret_cast<uint64_t>(handle.memory->data()));
}

Napi::Value MemoryByteLength(const Napi::CallbackInfo& info) {
  const MemoryHandle& handle = MemoryArgument(info[0]);
  return Napi::Number::New(info.Env(), static_cast<double>(handle.memory->bytes()));
}

// memoryView(memory, byteOffset, byteLength) -> ArrayBuffer
Napi::Value MemoryView(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const MemoryHandle& handle = MemoryArgument(info[0]);
  const uint64_t offset = ByteCount(info[1]);
  const uint64_t bytes = ByteCount(info[2]);
  if (offset + bytes > handle.memory->bytes()) {
    Throw(env, "ERR_MOE_EP_ARGUMENT", "expected a range of the memory");
  }
  if (!IsOpen(env, handle.memory, handle.borrowed)) {
    Throw(env, "ERR_MOE_EP_RELEASED", "the memory was closed");
  }
  if (handle.memory->device() >= 0) {
    Throw(env, "ERR_MOE_EP_UNSUPPORTED", "JavaScript cannot see memory of a cuda device");
  }
  if (bytes == 0) return Napi::ArrayBuffer::New(env, 0);
  return CreateView(env, handle.memory, offset, bytes);
}

// memoryClose(memory, views): the views are detached first, so that no JavaScript sees unmapped
// bytes. What cannot be detached keeps the bytes mapped.
Napi::Value MemoryClose(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MemoryHandle& handle = MemoryArgument(info[0]);
  const auto views = info[1].As<Napi::Array>();
  for (uint32_t i = 0; i < views.Length(); ++i) DetachView(env, views.Get(i));
  handle.memory->Close();
  AdjustExternal(env, -std::exchange(handle.external_bytes, 0));
  return env.Undefined();
}

// createTensor(memory, byteOffset, dtype, shape, strides)
Napi::Value CreateTensor(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const MemoryHandle& handle = MemoryArgument(info[0]);
  const auto shape = info[3].As<Napi::Array>();
  const auto strides = info[4].As<Napi::Array>();
  if (shape.Length() > MOE_EP_MAX_DIMS)
    Throw(env, "ERR_MOE_EP_ARGUMENT", "shape: too many dimensions");
  moe_ep_tensor tensor = {};
  tensor.size = sizeof(moe_ep_tensor);
  tensor.dtype = info[2].As<Napi::Number>().Int32Value();
  tensor.device = handle.memory->device();
  tensor.dims = static_cast<int32_t>(shape.Length());
  for (int d = 0; d < tensor.dims; ++d) {
    tensor.shape[d] = shape.Get(d).As<Napi::Number>().Int64Value();
    tensor.strides[d] = strides.Get(d).As<Napi::Number>().Int64Value();
  }
  tensor.memory = handle.memory;
  tensor.byte_offset = ByteCount(info[1]);
  auto* held = new TensorHandle{tensor, handle.borrowed};
  tensor.memory->Retain();
  return Wrap<TensorHandle>(env, kTensorTag, held, [](Napi::Env, TensorHandle* held) {
    held->tensor.memory->Release();
    delete held;
  });
}

}  // namespace

uint64_t ByteCount(const Napi::Value& value) {
  const double bytes = value.As<Napi::Number>().DoubleValue();
  if (!(bytes >= 0) || bytes > 9007199254740992.0)
    Throw(value.Env(), "ERR_MOE_EP_ARGUMENT", "byteLength out of range");
  return static_cast<uint64_t>(bytes);
}

bool IsOpen(napi_env env, moe_ep_memory* memory, napi_ref borrowed) {
  if (memory->closed()) return false;
  if (borrowed == nullptr) return true;
  // While the memory is open and has a handle nobody has dropped the reference.
  napi_value buffer = nullptr;
  bool detached = true;
  if (napi_get_reference_value(env, borrowed, &buffer) != napi_ok || buffer == nullptr) return true;
  if (napi_is_detached_arraybuffer(env, buffer, &detached) != napi_ok || !detached) return true;
  memory->Close();
  return false;
}

Napi::Value WrapMemory(Napi::Env env, const MemoryHandle& handle) {
  Napi::Value value = Wrap<MemoryHandle>(env, kMemoryTag, new MemoryHandle(handle),
                                         [](Napi::Env env, MemoryHandle* held) {
                                           held->memory->Release();
                                           AdjustExternal(env, -held->external_bytes);
                                           delete held;
                                         });
  AdjustExternal(env, handle.external_bytes);
  return value;
}

void RegisterMemory(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "allocate", Allocate);
  Export(env, exports, "wrapBuffer", WrapBuffer);
  Export(env, exports, "wrapPointer", WrapPointer);
  Export(env, exports, "memoryPointer", MemoryPointer);
  Export(env, exports, "memoryByteLength", MemoryByteLength);
  Export(env, exports, "memoryView", MemoryView);
  Export(env, exports, "memoryClose", MemoryClose);
  Export(env, exports, "createTensor", CreateTensor);
}

}  // namespace moe_ep
