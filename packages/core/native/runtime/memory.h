// Reference-counted record of some bytes, with pins that keep the bytes themselves.
#pragma once

#include <cstdint>
#include <mutex>

#include "moe_ep/abi.h"

struct moe_ep_memory {
 public:
  using Deleter = void (*)(void* context);

  // `device`: -1 for the cpu's, otherwise the CUDA ordinal.
  moe_ep_memory(void* data, uint64_t bytes, Deleter deleter, void* context, int device = -1)
      : data_(data), bytes_(bytes), deleter_(deleter), context_(context), device_(device) {}

  void Retain();
  void Release();

  // The bytes, kept until Unpin; null once closed.
  void* Pin();
  void Unpin();

  // Refuses new pins; the bytes go with the last pin.
  void Close();

  bool closed();
  void* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  int device() const { return device_; }

 private:
  ~moe_ep_memory() = default;
  void FreeBytes();

  std::mutex mutex_;
  void* data_;
  const uint64_t bytes_;
  Deleter deleter_;
  void* context_;
  const int device_;
  int64_t references_ = 1;
  int64_t pins_ = 0;
  bool closed_ = false;
};
