// A family's buffer as JavaScript holds it: made, found in arguments, and let go of.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "moe_ep/transport/addon.h"

namespace moe_ep {

// `Buffer` has `routes` and `layout`; what it is called stands in errors.
template <typename Buffer>
class BufferHandles {
 public:
  using Handle = std::shared_ptr<Buffer>;

  constexpr BufferHandles(napi_type_tag tag, const char* article, const char* name)
      : tag_(tag), article_(article), name_(name) {}

  // A buffer of the first two arguments, routes and layout.
  Handle Make(const Arguments& args) const {
    auto buffer = std::make_shared<Buffer>();
    buffer->routes = RoutesArgument(args, 0);
    buffer->layout = FromNumbers<decltype(buffer->layout)>(args, 1);
    return buffer;
  }

  // Throws when it has more ranks than kernels can serve.
  void RequireMostRanks(const Arguments& args, const Buffer& buffer, int64_t most) const {
    if (buffer.routes.world_size() <= most) return;
    Throw(args.env(), "ERR_MOE_EP_UNSUPPORTED",
          Named() + " of a cuda device has at most " + std::to_string(most) + " ranks");
  }

  Napi::Value ToJs(Napi::Env env, Handle buffer) const {
    Napi::Value external = Napi::External<Handle>::New(
        env, new Handle(std::move(buffer)), [](Napi::Env, Handle* held) { delete held; });
    napi_type_tag_object(env, external, &tag_);
    return external;
  }

  // Commands that keep a copy keep the buffer's mappings.
  const Handle& Argument(const Arguments& args, size_t index) const { return Held(args, index); }

  // Lets go of the mappings once queued work is done.
  void Close(const Arguments& args, size_t index) const { Held(args, index).reset(); }

 private:
  Handle& Held(const Arguments& args, size_t index) const {
    Napi::Value value = args.value(index);
    bool same = false;
    if (value.IsExternal()) napi_check_object_type_tag(args.env(), value, &tag_, &same);
    if (!same) Throw(args.env(), "ERR_MOE_EP_ARGUMENT", "expected " + Named() + " handle");
    Handle& handle = *value.As<Napi::External<Handle>>().Data();
    if (handle == nullptr) Throw(args.env(), "ERR_MOE_EP_RELEASED", "the buffer was closed");
    args.RequireDevice(handle->routes.device(), name_);
    return handle;
  }

  std::string Named() const { return std::string(article_) + " " + name_; }

  napi_type_tag tag_;
  const char* article_;
  const char* name_;
};

}  // namespace moe_ep
