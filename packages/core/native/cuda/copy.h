// Copies of bytes between devices and the host, in stream order.
#pragma once

#include <cstdint>
#include <memory>

#include "moe_ep/command.h"

namespace moe_ep::cuda {

// A copy that can run many times. Memory of the host that the runtime did not allocate goes through
// a pinned buffer of its own, filled or emptied by a native thread when the stream gets there:
// nothing of it happens when the copy is enqueued.
class ByteCopy {
 public:
  // Host pointers may point to pinned memory or any other.
  ByteCopy(int device, void* to, bool to_host, const void* from, bool from_host, uint64_t bytes);

  void Run(const Exec& exec) const;

 private:
  struct Piece;
  struct HostPart;
  enum class Way { kDirect, kToHost, kFromHost, kOnHost };

  void* to_;
  const void* from_;
  uint64_t bytes_;
  Way way_;
  std::shared_ptr<HostPart> host_;  // of all ways but the direct one
};

// Puts bytes of the host into device memory that no work uses yet; done when it returns.
void Upload(int device, void* to, const void* from, uint64_t bytes);

}  // namespace moe_ep::cuda
