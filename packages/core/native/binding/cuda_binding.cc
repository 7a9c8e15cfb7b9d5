// Devices, memory and streams of CUDA. A build without CUDA has one function, which says so.
#include <string>
#include <utility>

#include "binding/handles.h"
#if MOE_EP_CUDA
#include <cstring>
#include <stdexcept>

#include "cuda/copy.h"
#include "cuda/cuda_stream.h"
#include "cuda/device.h"
#include "cuda/ipc_memory.h"
#include "cuda/shared_memory.h"
#include "moe_ep/cuda/check.h"
#endif

namespace moe_ep {
namespace {

#if MOE_EP_CUDA

using cuda::CudaStream;
using cuda::Device;

int OrdinalArgument(const Napi::Value& value) {
  const int ordinal = value.As<Napi::Number>().Int32Value();
  if (ordinal < 0 || ordinal >= cuda::ProbeDevices().count)
    Throw(value.Env(), "ERR_MOE_EP_NO_DEVICE", "there is no cuda:" + std::to_string(ordinal));
  return ordinal;
}

Device& DeviceArgument(const Napi::Value& value) { return Device::Get(OrdinalArgument(value)); }

CudaStream& CudaStreamArgument(const Napi::Value& value) {
  Stream& stream = StreamArgument(value);
  if (stream.device() < 0) Throw(value.Env(), "ERR_MOE_EP_ARGUMENT", "expected a cuda stream");
  return static_cast<CudaStream&>(stream);
}

// What `allocate` gives; where there is no memory, an error that says how much was asked for.
template <typename Allocate>
auto OrOutOfMemory(Napi::Env env, uint64_t bytes, const std::string& where,
                   const Allocate& allocate) {
  try {
    return allocate();
  } catch (const std::bad_alloc&) {
    Throw(env, "ERR_MOE_EP_OUT_OF_MEMORY",
          "cannot allocate " + std::to_string(bytes) + " bytes " + where);
  }
}

std::string OnDevice(int ordinal) { return "on cuda:" + std::to_string(ordinal); }

// cudaDevices() -> { devices, reason }
Napi::Value CudaDevices(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const cuda::Probe& probe = cuda::ProbeDevices();
  auto devices = Napi::Array::New(env);
  for (int ordinal = 0; ordinal < probe.count; ++ordinal) {
    const cuda::Properties properties = cuda::PropertiesOf(ordinal);
    auto device = Napi::Object::New(env);
    device.Set("gpu", properties.name);
    device.Set("uuid", properties.uuid);
    device.Set("memoryBytes", static_cast<double>(properties.memory_bytes));
    device.Set("multiprocessors", properties.multiprocessors);
    device.Set("computeCapability", properties.capability / 10.0);
    if (!properties.unavailable.empty()) device.Set("reason", properties.unavailable);
    devices.Set(ordinal, device);
  }
  auto result = Napi::Object::New(env);
  result.Set("devices", devices);
  result.Set("reason", probe.reason);
  return result;
}

// cudaAllocate(ordinal, byteLength, stream | undefined, zeroed): zeroed on the stream where there
// is one that runs, else at once.
Napi::Value CudaAllocate(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Device& device = DeviceArgument(info[0]);
  const uint64_t bytes = ByteCount(info[1]);
  const bool zeroed = info[3].As<Napi::Boolean>().Value();
  Stream* const stream = info[2].IsUndefined() ? nullptr : &CudaStreamArgument(info[2]);
  const bool on_stream = zeroed && stream != nullptr && !stream->recording();
  void* data = OrOutOfMemory(env, bytes, OnDevice(device.ordinal()), [&] {
    return zeroed && !on_stream ? device.AllocateZeroed(bytes) : device.Allocate(bytes);
  });
  struct Part {
    Device& device;
    void* data;
  };
  auto* memory = new moe_ep_memory(
      data, bytes,
      [](void* context) {
        auto* part = static_cast<Part*>(context);
        part->device.Free(part->data);
        delete part;
      },
      new Part{device, data}, device.ordinal());
  Napi::Value handle = WrapMemory(env, {memory, nullptr, static_cast<int64_t>(bytes)});
  if (on_stream && bytes > 0) {
    auto command =
        std::make_shared<Command>(Command::Kind::kMarker, [data, bytes](moe_ep_exec* exec) {
          cuda::Check(cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(exec->cuda_stream)),
                      "cudaMemsetAsync");
        });
    if (!stream->Enqueue(std::move(command)))
      Throw(env, "ERR_MOE_EP_RELEASED", "the stream was closed");
  }
  return handle;
}

// cudaAllocatePinned(ordinal, byteLength): zeroed memory of the host that the device reads and
// writes directly.
Napi::Value CudaAllocatePinned(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Device& device = DeviceArgument(info[0]);
  const uint64_t bytes = ByteCount(info[1]);
  struct Part {
    Device& device;
    void* data;
  };
  void* data =
      OrOutOfMemory(env, bytes, "of pinned memory", [&] { return device.AllocatePinned(bytes); });
  std::memset(data, 0, bytes);
  auto* memory = new moe_ep_memory(
      data, bytes,
      [](void* context) {
        auto* part = static_cast<Part*>(context);
        part->device.Retire([part] {
          part->device.FreePinned(part->data);
          delete part;
        });
      },
      new Part{device, data});
  return WrapMemory(env, {memory, nullptr, static_cast<int64_t>(bytes)});
}

// cudaUpload(memory, byteOffset, typedArray): into memory that nothing uses yet; done when it
// returns.
Napi::Value CudaUpload(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const MemoryHandle& handle = MemoryArgument(info[0]);
  const uint64_t offset = ByteCount(info[1]);
  const auto source = info[2].As<Napi::TypedArray>();
  if (handle.memory->device() < 0 || offset + source.ByteLength() > handle.memory->bytes())
    Throw(env, "ERR_MOE_EP_ARGUMENT", "expected bytes that fit into memory of a cuda device");
  auto* to = static_cast<uint8_t*>(handle.memory->Pin());
  if (to == nullptr) Throw(env, "ERR_MOE_EP_RELEASED", "the memory was closed");
  const auto* from = static_cast<const uint8_t*>(source.ArrayBuffer().Data()) + source.ByteOffset();
  try {
    cuda::Upload(handle.memory->device(), to + offset, from, source.ByteLength());
  } catch (...) {
    handle.memory->Unpin();
    throw;
  }
  handle.memory->Unpin();
  return env.Undefined();
}

Napi::Value WrapStream(Napi::Env env, std::shared_ptr<CudaStream> stream) {
  Environment::Of(env).Keep(stream);
  return Wrap<StreamHandle>(env, kStreamTag, new StreamHandle(std::move(stream)),
                            [](Napi::Env env, StreamHandle* held) {
                              Environment::Of(env).Release(*held);  // what is queued still runs
                              delete held;
                            });
}

Napi::Value CudaCreateStream(const Napi::CallbackInfo& info) {
  return WrapStream(info.Env(), CudaStream::Create(CoreApi(), DeviceArgument(info[0])));
}

// cudaWrapStream(ordinal, handle): a cudaStream_t of somebody else; 0 is the default stream.
Napi::Value CudaWrapStream(const Napi::CallbackInfo& info) {
  bool lossless = false;
  const uint64_t handle = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
  return WrapStream(info.Env(), CudaStream::Wrap(CoreApi(), DeviceArgument(info[0]),
                                                 reinterpret_cast<cudaStream_t>(handle)));
}

// cudaStreamHandle(stream) -> the cudaStream_t
Napi::Value CudaStreamHandle(const Napi::CallbackInfo& info) {
  const auto handle = reinterpret_cast<uint64_t>(CudaStreamArgument(info[0]).Share());
  return Napi::BigInt::New(info.Env(), handle);
}

// cudaMemoryUse(ordinal) -> { reservedBytes, usedBytes }
Napi::Value CudaMemoryUse(const Napi::CallbackInfo& info) {
  Device& device = DeviceArgument(info[0]);
  device.Poll();
  cuda::FreeUnmappedIpc();
  const cuda::Arena::Use use = device.memory_use();
  auto result = Napi::Object::New(info.Env());
  result.Set("reservedBytes", static_cast<double>(use.reserved));
  result.Set("usedBytes", static_cast<double>(use.in_use));
  return result;
}

// cudaFreeBytes(ordinal) -> bytes that the driver has left
Napi::Value CudaFreeBytes(const Napi::CallbackInfo& info) {
  Device& device = DeviceArgument(info[0]);
  device.Poll();
  cuda::FreeUnmappedIpc();
  return Napi::Number::New(info.Env(), static_cast<double>(device.FreeBytes()));
}

Napi::Value CudaCanExport(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), cuda::CanExport(OrdinalArgument(info[0])));
}

// cudaAllocateExportable(ordinal, byteLength)
Napi::Value CudaAllocateExportable(const Napi::CallbackInfo& info) {
  const int ordinal = OrdinalArgument(info[0]);
  const uint64_t bytes = ByteCount(info[1]);
  auto* memory = OrOutOfMemory(info.Env(), bytes, OnDevice(ordinal),
                               [&] { return cuda::AllocateExportable(ordinal, bytes); });
  return WrapMemory(info.Env(), {memory, nullptr, static_cast<int64_t>(bytes)});
}

Napi::Value CudaExportMemory(const Napi::CallbackInfo& info) {
  try {
    return Napi::Number::New(info.Env(), cuda::ExportDescriptor(*MemoryArgument(info[0]).memory));
  } catch (const std::invalid_argument&) {
    Throw(info.Env(), "ERR_MOE_EP_ARGUMENT", "the memory was not allocated as exportable");
  }
}

// cudaImportMemory(ordinal, descriptor, byteLength)
Napi::Value CudaImportMemory(const Napi::CallbackInfo& info) {
  auto* memory = cuda::ImportDescriptor(
      OrdinalArgument(info[0]), info[1].As<Napi::Number>().Int32Value(), ByteCount(info[2]));
  return WrapMemory(info.Env(), {memory});
}

cuda::MappingCount CountArgument(const Napi::Value& memory, const Napi::Value& offset) {
  return {MemoryArgument(memory).memory, ByteCount(offset)};
}

// cudaAllocateIpc(ordinal, byteLength, countMemory, countOffset)
Napi::Value CudaAllocateIpc(const Napi::CallbackInfo& info) {
  const int ordinal = OrdinalArgument(info[0]);
  const uint64_t bytes = ByteCount(info[1]);
  try {
    auto* memory = OrOutOfMemory(info.Env(), bytes, OnDevice(ordinal), [&] {
      return cuda::AllocateIpc(ordinal, bytes, CountArgument(info[2], info[3]));
    });
    return WrapMemory(info.Env(), {memory, nullptr, static_cast<int64_t>(bytes)});
  } catch (const std::invalid_argument& error) {
    Throw(info.Env(), "ERR_MOE_EP_ARGUMENT", error.what());
  }
}

// cudaIpcHandle(memory) -> bytes
Napi::Value CudaIpcHandle(const Napi::CallbackInfo& info) {
  try {
    const cuda::IpcHandleBytes handle = cuda::IpcHandleOf(*MemoryArgument(info[0]).memory);
    auto bytes = Napi::Uint8Array::New(info.Env(), handle.size());
    std::memcpy(bytes.Data(), handle.data(), handle.size());
    return bytes;
  } catch (const std::invalid_argument&) {
    Throw(info.Env(), "ERR_MOE_EP_ARGUMENT", "the memory was not allocated for ipc");
  }
}

// cudaOpenIpc(ordinal, handle, byteLength, countMemory, countOffset)
Napi::Value CudaOpenIpc(const Napi::CallbackInfo& info) {
  const auto given = info[1].As<Napi::Uint8Array>();
  cuda::IpcHandleBytes handle;
  if (given.ByteLength() != handle.size())
    Throw(info.Env(), "ERR_MOE_EP_ARGUMENT", "expected the bytes of an ipc handle");
  std::memcpy(handle.data(), given.Data(), handle.size());
  try {
    return WrapMemory(info.Env(),
                      {cuda::OpenIpc(OrdinalArgument(info[0]), handle, ByteCount(info[2]),
                                     CountArgument(info[3], info[4]))});
  } catch (const std::invalid_argument& error) {
    Throw(info.Env(), "ERR_MOE_EP_ARGUMENT", error.what());
  }
}

Napi::Value CudaCanAccessPeer(const Napi::CallbackInfo& info) {
  const bool can = cuda::CanAccessPeer(OrdinalArgument(info[0]), OrdinalArgument(info[1]));
  return Napi::Boolean::New(info.Env(), can);
}

Napi::Value CudaEnablePeerAccess(const Napi::CallbackInfo& info) {
  cuda::EnablePeerAccess(OrdinalArgument(info[0]), OrdinalArgument(info[1]));
  return info.Env().Undefined();
}

#else

Napi::Value CudaDevices(const Napi::CallbackInfo& info) {
  auto result = Napi::Object::New(info.Env());
  result.Set("devices", Napi::Array::New(info.Env()));
  result.Set(
      "reason",
      "@moe-ep/core was built without CUDA: there was no nvcc, or MOE_EP_CUDA_BUILD was OFF");
  return result;
}

#endif

}  // namespace

void RegisterCuda(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "cudaDevices", CudaDevices);
#if MOE_EP_CUDA
  Export(env, exports, "cudaAllocate", CudaAllocate);
  Export(env, exports, "cudaAllocatePinned", CudaAllocatePinned);
  Export(env, exports, "cudaUpload", CudaUpload);
  Export(env, exports, "cudaCreateStream", CudaCreateStream);
  Export(env, exports, "cudaWrapStream", CudaWrapStream);
  Export(env, exports, "cudaStreamHandle", CudaStreamHandle);
  Export(env, exports, "cudaMemoryUse", CudaMemoryUse);
  Export(env, exports, "cudaFreeBytes", CudaFreeBytes);
  Export(env, exports, "cudaCanExport", CudaCanExport);
  Export(env, exports, "cudaAllocateExportable", CudaAllocateExportable);
  Export(env, exports, "cudaExportMemory", CudaExportMemory);
  Export(env, exports, "cudaImportMemory", CudaImportMemory);
  Export(env, exports, "cudaAllocateIpc", CudaAllocateIpc);
  Export(env, exports, "cudaIpcHandle", CudaIpcHandle);
  Export(env, exports, "cudaOpenIpc", CudaOpenIpc);
  Export(env, exports, "cudaCanAccessPeer", CudaCanAccessPeer);
  Export(env, exports, "cudaEnablePeerAccess", CudaEnablePeerAccess);
#endif
}

}  // namespace moe_ep
