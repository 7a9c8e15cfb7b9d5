#include "runtime/memory.h"

#include <utility>

#include "runtime/device_work.h"

void moe_ep_memory::Retain() {
  std::lock_guard lock(mutex_);
  ++references_;
}

void moe_ep_memory::Release() {
  {
    std::lock_guard lock(mutex_);
    if (--references_ > 0) return;
  }
  // Every pin holds a reference through its owner, so nothing uses the bytes any more.
  FreeBytes();
  delete this;
}

void* moe_ep_memory::Pin() {
  std::lock_guard lock(mutex_);
  if (closed_) return nullptr;
  ++pins_;
  return data_;
}

void moe_ep_memory::Unpin() {
  {
    std::lock_guard lock(mutex_);
    if (--pins_ > 0 || !closed_) return;
  }
  FreeBytes();
}

void moe_ep_memory::Close() {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    if (pins_ > 0) return;
  }
  FreeBytes();
}

bool moe_ep_memory::closed() {
  std::lock_guard lock(mutex_);
  return closed_;
}

void moe_ep_memory::FreeBytes() {
  const Deleter deleter = std::exchange(deleter_, nullptr);
  if (deleter == nullptr) return;
  if (device_ < 0) return deleter(context_);
  // Nobody can enqueue work with it any more, but what was enqueued may still use it.
  moe_ep::RunWhenDeviceIsDone(device_, [deleter, context = context_] { deleter(context); });
}
