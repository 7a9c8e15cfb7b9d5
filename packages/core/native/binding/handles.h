// JavaScript handles of native objects: type-tagged externals, so that a wrong handle is an error
// and not a crash.
#pragma once

#include <napi.h>

#include <memory>

#include "binding/environment.h"
#include "runtime/memory.h"
#include "runtime/stream.h"

namespace moe_ep {

inline constexpr napi_type_tag kMemoryTag = {0x6d6f652d65700001, 0x9d3c1f2ab7e84c01};
inline constexpr napi_type_tag kTensorTag = {0x6d6f652d65700002, 0x9d3c1f2ab7e84c02};
inline constexpr napi_type_tag kStreamTag = {0x6d6f652d65700003, 0x9d3c1f2ab7e84c03};
inline constexpr napi_type_tag kEventTag = {0x6d6f652d65700004, 0x9d3c1f2ab7e84c04};
inline constexpr napi_type_tag kGraphTag = {0x6d6f652d65700005, 0x9d3c1f2ab7e84c05};
inline constexpr napi_type_tag kPlanTag = {0x6d6f652d65700007, 0x9d3c1f2ab7e84c07};

// An external that owns `value` and carries `tag`. `destroy` comes on the JavaScript thread.
template <typename T>
Napi::Value Wrap(Napi::Env env, const napi_type_tag& tag, T* value,
                 void (*destroy)(Napi::Env, T*)) {
  Napi::Value external;
  try {
    external = Napi::External<T>::New(env, value, destroy);
  } catch (...) {
    destroy(env, value);
    throw;
  }
  if (napi_type_tag_object(env, external, &tag) != napi_ok) {
    throw Napi::Error::New(env, "cannot tag a handle");
  }
  return external;
}

// Null when `value` is not a handle of this kind.
template <typename T>
T* TryUnwrap(napi_env env, napi_value value, const napi_type_tag& tag) {
  napi_valuetype type;
  bool same = false;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_external) return nullptr;
  if (napi_check_object_type_tag(env, value, &tag, &same) != napi_ok || !same) return nullptr;
  void* data = nullptr;
  return napi_get_value_external(env, value, &data) == napi_ok ? static_cast<T*>(data) : nullptr;
}

template <typename T>
T& Unwrap(const Napi::Value& value, const napi_type_tag& tag, const char* what) {
  T* held = TryUnwrap<T>(value.Env(), value, tag);
  if (held == nullptr)
    Throw(value.Env(), "ERR_MOE_EP_ARGUMENT", std::string("expected a native ") + what + " handle");
  return *held;
}

using StreamHandle = std::shared_ptr<Stream>;
using EventHandle = std::shared_ptr<Event>;
using GraphHandle = std::shared_ptr<const Graph>;
using PlanHandle = std::shared_ptr<const Plan>;

inline Stream& StreamArgument(const Napi::Value& value) {
  return *Unwrap<StreamHandle>(value, kStreamTag, "stream");
}

// Throws the failure, where there is one.
inline void Require(Napi::Env env, const MaybeFailure& failure) {
  if (failure) Throw(env, failure->code.c_str(), failure->message);
}

// What stands behind a memory's JavaScript handle.
struct MemoryHandle {
  moe_ep_memory* memory;        // one reference
  napi_ref borrowed = nullptr;  // the ArrayBuffer that owns the bytes; valid until they are freed
  int64_t external_bytes = 0;   // what the garbage collector was told of
};

inline MemoryHandle& MemoryArgument(const Napi::Value& value) {
  return Unwrap<MemoryHandle>(value, kMemoryTag, "memory");
}
// Throws unless it is a whole number of bytes that JavaScript can name.
uint64_t ByteCount(const Napi::Value& value);

struct TensorHandle {
  moe_ep_tensor tensor;  // one reference of its memory
  napi_ref borrowed;     // as the memory's
};

// JavaScript thread. A borrowed ArrayBuffer that was transferred takes its bytes along: that closes
// the memory.
bool IsOpen(napi_env env, moe_ep_memory* memory, napi_ref borrowed);

// Takes over the caller's reference.
Napi::Value WrapMemory(Napi::Env env, const MemoryHandle& handle);
const moe_ep_core_api* CoreApi();

void RegisterMemory(Napi::Env env, Napi::Object exports);
void RegisterStream(Napi::Env env, Napi::Object exports);
void RegisterGraph(Napi::Env env, Napi::Object exports);
void RegisterCopy(Napi::Env env, Napi::Object exports);
void RegisterCuda(Napi::Env env, Napi::Object exports);

}  // namespace moe_ep
