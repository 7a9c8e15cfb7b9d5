// What every other addon's binding needs: taking core's table at load, and reading arguments.
//
//   Napi::Object Init(Napi::Env env, Napi::Object exports) {
//     moe_ep::ExportInitialize(env, exports);
//     moe_ep::Export(env, exports, "permute", Permute);
#pragma once

#include <napi.h>

#include <string>
#include <utility>

#include "moe_ep/binding.h"
#include "moe_ep/command.h"
#include "moe_ep/core.h"
#include "moe_ep/tensor.h"

// Whether this addon was built with its CUDA files (tooling/native).
#ifndef MOE_EP_CUDA
#define MOE_EP_CUDA 0
#endif

namespace moe_ep {

// initialize(coreApi): src/native.ts calls it once an environment before anything else.
inline Napi::Value InitializeCore(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  bool same = false;
  napi_valuetype type = napi_undefined;
  napi_typeof(env, info[0], &type);
  if (type == napi_external) napi_check_object_type_tag(env, info[0], &kCoreApiTag, &same);
  if (!same)
    Throw(env, "ERR_MOE_EP_DUPLICATE_CORE", "initialize: expected the table of @moe-ep/core");
  const auto* api = info[0].As<Napi::External<moe_ep_core_api>>().Data();
  if (api->major != MOE_EP_ABI_MAJOR || api->size < sizeof(moe_ep_core_api)) {
    Throw(env, "ERR_MOE_EP_DUPLICATE_CORE",
          "this addon was built for version " + std::to_string(MOE_EP_ABI_MAJOR) + "." +
              std::to_string(MOE_EP_ABI_MINOR) +
              " of the native interface of @moe-ep/core, but version " +
              std::to_string(api->major) + "." + std::to_string(api->minor) + " is loaded");
  }
  // Memory and streams that this addon still holds belong to the first one. Worker threads share
  // the pointer, and may load another copy of core than the main thread did.
  if (CoreTable() != nullptr && CoreTable() != api) {
    Throw(env, "ERR_MOE_EP_DUPLICATE_CORE",
          "this addon is joined to another copy of @moe-ep/core already: one process, its worker "
          "threads included, "
          "must use one copy");
  }
  CoreTable() = api;
  return env.Undefined();
}

inline void ExportInitialize(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "initialize", InitializeCore);
}

// Reads the arguments of a binding call. TypeScript has checked shapes and dtypes; what is checked
// here keeps a wrong call from crashing the process.
class Arguments {
 public:
  // Where the first argument is a stream, tensors must be on its device.
  explicit Arguments(const Napi::CallbackInfo& info) : info_(info) {
    stream_ = Core().stream_from_js(info.Env(), info[0]);
    if (stream_ != nullptr) device_ = Core().stream_device(stream_);
  }

  Napi::Env env() const { return info_.Env(); }
  bool present(size_t index) const { return !info_[index].IsUndefined() && !info_[index].IsNull(); }

  Tensor tensor(size_t index) const { return on_device(index, any_tensor(index, info_[index])); }
  // Of an array of tensors.
  Tensor tensor_in(size_t index, uint32_t element) const {
    return on_device(index, any_tensor(index, value(index).As<Napi::Array>().Get(element)));
  }
  // An absent tensor: data() is null.
  Tensor optional_tensor(size_t index) const { return present(index) ? tensor(index) : Tensor(); }
  // One in memory of the host, whatever the stream's device; it may be absent.
  Tensor optional_host_tensor(size_t index) const {
    if (!present(index)) return Tensor();
    Tensor tensor = any_tensor(index, info_[index]);
    if (tensor.device() >= 0)
      Throw(env(), "ERR_MOE_EP_ARGUMENT", Position(index) + "expected a tensor on the host");
    return tensor;
  }

  moe_ep_stream* stream(size_t index) const {
    moe_ep_stream* stream = index == 0 ? stream_ : Core().stream_from_js(env(), info_[index]);
    if (stream == nullptr)
      Throw(env(), "ERR_MOE_EP_ARGUMENT", Position(index) + "expected a native stream handle");
    if (!MOE_EP_CUDA && Core().stream_device(stream) >= 0) {
      Throw(env(), "ERR_MOE_EP_UNSUPPORTED",
            "this addon was built without CUDA: it has the cpu device only");
    }
    return stream;
  }

  // Whatever else the call uses must be on the stream's device, too.
  void RequireDevice(int32_t device, const char* what) const {
    if (device_ == kNoStream || device == device_) return;
    Throw(env(), "ERR_MOE_EP_ARGUMENT",
          std::string(what) + ": expected one on " + NameOf(device_) +
              ", the stream's device, received one on " + NameOf(device));
  }

  int64_t integer(size_t index) const { return info_[index].As<Napi::Number>().Int64Value(); }
  double number(size_t index) const { return info_[index].As<Napi::Number>().DoubleValue(); }
  bool boolean(size_t index) const { return info_[index].As<Napi::Boolean>().Value(); }
  std::string text(size_t index) const { return info_[index].As<Napi::String>().Utf8Value(); }
  Napi::Value value(size_t index) const { return info_[index]; }

 private:
  Tensor on_device(size_t index, Tensor tensor) const {
    if (device_ != kNoStream && tensor.device() != device_) {
      Throw(env(), "ERR_MOE_EP_ARGUMENT",
            Position(index) + "expected a tensor on " + NameOf(device_) +
                ", the stream's device, received one on " + NameOf(tensor.device()));
    }
    return tensor;
  }
  Tensor any_tensor(size_t index, Napi::Value value) const {
    const moe_ep_tensor* native = Core().tensor_from_js(env(), value);
    if (native == nullptr)
      Throw(env(), "ERR_MOE_EP_ARGUMENT", Position(index) + "expected a native tensor handle");
    Tensor tensor(*native);
    if (!tensor.valid())
      Throw(env(), "ERR_MOE_EP_RELEASED", Position(index) + "the tensor's memory was closed");
    return tensor;
  }

  static std::string Position(size_t index) { return "argument " + std::to_string(index) + ": "; }

  static std::string NameOf(int32_t device) {
    return device < 0 ? "cpu" : "cuda:" + std::to_string(device);
  }

  static constexpr int32_t kNoStream = -2;

  const Napi::CallbackInfo& info_;
  moe_ep_stream* stream_ = nullptr;  // the first argument, if it is one
  int32_t device_ = kNoStream;
};

// Appends `body`, a callable that takes Exec&, to the stream. What it captures lives until it has
// run (and, in a graph, as long as the graph): capture tensors by value.
template <typename Body>
Napi::Value Enqueue(Napi::Env env, moe_ep_stream* stream, Body body) {
  if (!Core().stream_enqueue(stream, MakeCommand(std::move(body)))) {
    Throw(env, "ERR_MOE_EP_RELEASED", "the stream was closed");
  }
  return env.Undefined();
}

// Fields of a plain struct of i64, in order, from an array of numbers.
template <typename Struct>
Struct FromNumbers(const Arguments& args, size_t index) {
  const auto numbers = args.value(index).As<Napi::Array>();
  if (numbers.Length() * sizeof(int64_t) != sizeof(Struct)) {
    Throw(args.env(), "ERR_MOE_EP_INTERNAL", "native and JavaScript disagree about a record");
  }
  Struct result;
  for (uint32_t i = 0; i < numbers.Length(); ++i) {
    reinterpret_cast<int64_t*>(&result)[i] = numbers.Get(i).As<Napi::Number>().Int64Value();
  }
  return result;
}

}  // namespace moe_ep
