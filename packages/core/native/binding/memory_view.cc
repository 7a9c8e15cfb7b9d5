#include "binding/memory_view.h"

#include "moe_ep/binding.h"

namespace moe_ep {
namespace {

// Deleted by the finalizer of the bytes, which the runtime calls after the last ArrayBuffer over
// them has gone: not always the one that was made for them.
struct View {
  moe_ep_memory* memory;
  bool pinned;
};

void Destroy(View* view) {
  if (view->pinned) view->memory->Unpin();
  view->memory->Release();
  delete view;
}

[[noreturn]] void Refuse(Napi::Env env, uint64_t bytes) {
  napi_value ignored;
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending) {
    napi_get_and_clear_last_exception(env, &ignored);
  }
  Throw(env, "ERR_MOE_EP_UNSUPPORTED",
        "this runtime cannot view " + std::to_string(bytes) +
            " bytes of native memory as an ArrayBuffer");
}

}  // namespace

Napi::Value CreateView(Napi::Env env, moe_ep_memory* memory, uint64_t offset, uint64_t bytes) {
  auto* data = static_cast<uint8_t*>(memory->Pin());
  if (data == nullptr) Throw(env, "ERR_MOE_EP_RELEASED", "the memory was closed");
  memory->Retain();
  auto* view = new View{memory, true};
  napi_value buffer;
  const napi_status status = napi_create_external_arraybuffer(
      env, data + offset, bytes,
      [](napi_env, void*, void* hint) { Destroy(static_cast<View*>(hint)); }, view, &buffer);
  if (status != napi_ok) {
    // A generic failure means that the runtime took the bytes and gave up later: it calls the
    // finalizer itself. In all other cases it never will.
    if (status != napi_generic_failure) Destroy(view);
    Refuse(env, bytes);
  }
  // Lets DetachView find the record. Without it the view is given up, and goes when it is
  // collected.
  if (napi_wrap(env, buffer, view, nullptr, nullptr, nullptr) != napi_ok) Refuse(env, bytes);
  return Napi::Value(env, buffer);
}

void DetachView(Napi::Env env, const Napi::Value& array_buffer) {
  bool detached = true;
  void* wrapped = nullptr;
  if (!array_buffer.IsArrayBuffer()) return;
  if (napi_is_detached_arraybuffer(env, array_buffer, &detached) != napi_ok || detached) return;
  if (napi_unwrap(env, array_buffer, &wrapped) != napi_ok) return;
  auto* view = static_cast<View*>(wrapped);
  if (napi_detach_arraybuffer(env, array_buffer) != napi_ok) return;
  view->pinned = false;
  view->memory->Unpin();
}

}  // namespace moe_ep
