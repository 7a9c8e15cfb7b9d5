#include "cuda/copy.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda/device.h"
#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {
namespace {

constexpr uint64_t kStagingBytes = uint64_t{32} << 20;

bool IsPinned(const void* host) {
  cudaPointerAttributes attributes = {};
  if (cudaPointerGetAttributes(&attributes, host) == cudaSuccess)
    return attributes.type != cudaMemoryTypeUnregistered;
  cudaGetLastError();
  return false;
}

}  // namespace

// What a host thread copies.
struct ByteCopy::Piece {
  void* to;
  const void* from;
  uint64_t bytes;

  static void Copy(void* self) {
    const auto* piece = static_cast<const Piece*>(self);
    std::memmove(piece->to, piece->from, piece->bytes);
  }
};

struct ByteCopy::HostPart {
  Device& device;
  // Used for one piece after the other: the stream's order keeps them apart. Null between two
  // places of the host, which need none.
  uint8_t* buffer = nullptr;
  std::vector<Piece> pieces;

  ~HostPart() {
    if (buffer != nullptr)
      device.Retire([&device = device, buffer = buffer] { device.FreePinned(buffer); });
  }
};

ByteCopy::ByteCopy(int device, void* to, bool to_host, const void* from, bool from_host,
                   uint64_t bytes)
    : to_(to), from_(from), bytes_(bytes), way_(Way::kDirect) {
  // Between two places of the host the runtime would make the caller wait for the stream.
  if (to_host && from_host) {
    way_ = Way::kOnHost;
  } else if (to_host && !IsPinned(to)) {
    way_ = Way::kToHost;
  } else if (from_host && !IsPinned(from)) {
    way_ = Way::kFromHost;
  }
  if (way_ == Way::kDirect || bytes == 0) return;
  Device& owner = Device::Get(device);
  host_.reset(new HostPart{owner, nullptr, {}});
  if (way_ != Way::kOnHost)
    host_->buffer = static_cast<uint8_t*>(owner.AllocatePinned(std::min(bytes, kStagingBytes)));
  // In pieces, also on the host alone, for one thread makes such copies for all streams; but not
  // where the places overlap.
  const bool overlap = way_ == Way::kOnHost &&
                       static_cast<uint8_t*>(to) < static_cast<const uint8_t*>(from) + bytes &&
                       static_cast<const uint8_t*>(from) < static_cast<uint8_t*>(to) + bytes;
  const uint64_t most = overlap ? bytes : kStagingBytes;
  for (uint64_t at = 0; at < bytes; at += most) {
    void* const piece_to = way_ == Way::kFromHost ? host_->buffer : static_cast<uint8_t*>(to) + at;
    const void* const piece_from =
        way_ == Way::kToHost ? host_->buffer : static_cast<const uint8_t*>(from) + at;
    host_->pieces.push_back({piece_to, piece_from, std::min(most, bytes - at)});
  }
}

void ByteCopy::Run(const Exec& exec) const {
  if (bytes_ == 0) return;
  auto* const stream = static_cast<cudaStream_t>(exec.cuda_stream());
  const auto copy = [stream](void* to, const void* from, uint64_t bytes) {
    Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
  };
  if (way_ == Way::kDirect) return copy(to_, from_, bytes_);
  uint64_t at = 0;
  try {
    for (Piece& piece : host_->pieces) {
      if (way_ == Way::kToHost)
        copy(host_->buffer, static_cast<const uint8_t*>(from_) + at, piece.bytes);
      Check(cudaLaunchHostFunc(stream, Piece::Copy, &piece), "cudaLaunchHostFunc");
      if (way_ == Way::kFromHost) copy(static_cast<uint8_t*>(to_) + at, host_->buffer, piece.bytes);
      at += piece.bytes;
    }
  } catch (...) {
    exec.KeepUntilDone(host_);  // pieces that are queued already use it
    throw;
  }
  exec.KeepUntilDone(host_);
}

void Upload(int device, void* to, const void* from, uint64_t bytes) {
  if (bytes == 0) return;
  Device& owner = Device::Get(device);
  owner.MakeCurrent();
  const RelaxedCaptures relaxed;
  Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, owner.auxiliary()), "cudaMemcpyAsync");
  Check(cudaStreamSynchronize(owner.auxiliary()), "cudaStreamSynchronize");
}

}  // namespace moe_ep::cuda
