// Reference-counted record of some bytes, with pins that keep the bytes themselves.
#pragma once

#include <cstdint>
#include <mutex>

#include "moe_ep/abi.h"

struct moe_ep_memory {
 public:
  using Deleter = void (*)(void* context);

  moe_ep_memory(void* data, uint64_t bytes, Deleter deleter, void* context)
      : data_(data), bytes_(bytes), deleter_(deleter), context_(context) {}

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

 private:
  ~moe_ep_memory() = default;
  void FreeBytes();

  std::mutex mutex_;
  void* data_;
  const uint64_t bytes_;
  Deleter deleter_;
  void* context_;
  int64_t references_ = 1;
  int64_t pins_ = 0;
  bool closed_ = false;
};

namespace moe_ep {

// Zeroed memory of its own pages when large, aligned to 128 bytes at least. Null when there is none
// to be had.
moe_ep_memory* AllocateMemory(uint64_t bytes);

}  // namespace moe_ep
