// What the bindings of all addons, core's included, share: errors with codes, and functions that
// let no C++ exception out.
#pragma once

#include <napi.h>

#include <new>
#include <string>

namespace moe_ep {

// Marks the external that carries core's table.
inline constexpr napi_type_tag kCoreApiTag = {0x6d6f652d65700006, 0x9d3c1f2ab7e84c06};

// A JavaScript error with `code`, which src/error.ts turns into a MoeEpError.
inline Napi::Error CodedError(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Value().Set("code", code);
  return error;
}

[[noreturn]] inline void Throw(Napi::Env env, const char* code, const std::string& message) {
  throw CodedError(env, code, message);
}

// Other exceptions become plain errors in node-addon-api; this one has a code of its own.
inline void Export(Napi::Env env, Napi::Object exports, const char* name,
                   Napi::Value (*function)(const Napi::CallbackInfo&)) {
  const auto guarded = [function, name](const Napi::CallbackInfo& info) -> Napi::Value {
    try {
      return function(info);
    } catch (const std::bad_alloc&) {
      Throw(info.Env(), "ERR_MOE_EP_OUT_OF_MEMORY", std::string(name) + ": out of memory");
    }
  };
  exports.Set(name, Napi::Function::New(env, guarded, name));
}

}  // namespace moe_ep
