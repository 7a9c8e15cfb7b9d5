// ArrayBuffers over native memory.
#pragma once

#include <napi.h>

#include "runtime/memory.h"

namespace moe_ep {

// An ArrayBuffer over a part of the bytes, not empty. It pins them: they stay mapped until it was
// collected, or detached by DetachView.
Napi::Value CreateView(Napi::Env env, moe_ep_memory* memory, uint64_t offset, uint64_t bytes);

// Ends a view that CreateView made. One that cannot be detached, or whose bytes went on to another
// ArrayBuffer, keeps its pin.
void DetachView(Napi::Env env, const Napi::Value& array_buffer);

}  // namespace moe_ep
