// A tensor inside native code: a view whose bytes stay mapped as long as it or a copy of it lives.
#pragma once

#include <cstdint>
#include <memory>

#include "moe_ep/core.h"
#include "moe_ep/dtype.h"

namespace moe_ep {

class Tensor {
 public:
  Tensor() = default;

  // Invalid when the memory was closed.
  explicit Tensor(const moe_ep_tensor& native) : view_(native) {
    auto* base = static_cast<uint8_t*>(Core().memory_pin(native.memory));
    if (base == nullptr) return;
    Core().memory_retain(native.memory);
    pin_ = std::shared_ptr<moe_ep_memory>(native.memory, [](moe_ep_memory* memory) {
      Core().memory_unpin(memory);
      Core().memory_release(memory);
    });
    data_ = base + native.byte_offset;
  }

  bool valid() const { return data_ != nullptr; }
  explicit operator bool() const { return valid(); }
  DType dtype() const { return static_cast<DType>(view_.dtype); }
  int32_t device() const { return view_.device; }  // -1: cpu
  int dims() const { return view_.dims; }
  int64_t size(int dim) const { return view_.shape[dim]; }
  int64_t stride(int dim) const { return view_.strides[dim]; }
  int64_t numel() const {
    int64_t count = 1;
    for (int d = 0; d < view_.dims; ++d) count *= view_.shape[d];
    return count;
  }

  template <typename T = void>
  T* data() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  moe_ep_tensor view_ = {};
  std::shared_ptr<moe_ep_memory> pin_;
  uint8_t* data_ = nullptr;
};

}  // namespace moe_ep
