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
    std::memcpy(piece->to, piece->from, piece->bytes);
  }
};

// The buffer, used for one piece after the other: the stream's order keeps them apart.
struct ByteCopy::Staging {
  Device& device;
  uint8_t* buffer;
  std::vector<Piece> pieces;

  ~Staging() {
    device.Retire([&device = device, buffer = buffer] { device.FreePinned(buffer); });
  }
};

ByteCopy::ByteCopy(int device, void* to, bool to_host, const void* from, bool from_host,
                   uint64_t bytes)
    : to_(to),
      from_(from),
      bytes_(bytes),
      to_host_(to_host && !IsPinned(to)),
      from_host_(from_host && !IsPinned(from)) {
  if ((!to_host_ && !from_host_) || bytes == 0) return;
  Device& owner = Device::Get(device);
  auto* buffer = static_cast<uint8_t*>(owner.AllocatePinned(std::min(bytes, kStagingBytes)));
  staging_.reset(new Staging{owner, buffer, {}});
  for (uint64_t at = 0; at < bytes; at += kStagingBytes) {
    const uint64_t count = std::min(kStagingBytes, bytes - at);
    if (to_host_) {
      staging_->pieces.push_back({static_cast<uint8_t*>(to) + at, buffer, count});
    } else {
      staging_->pieces.push_back({buffer, static_cast<const uint8_t*>(from) + at, count});
    }
  }
}

void ByteCopy::Run(const Exec& exec) const {
  if (bytes_ == 0) return;
  auto* const stream = static_cast<cudaStream_t>(exec.cuda_stream());
  if (staging_ == nullptr) {
    Check(cudaMemcpyAsync(to_, from_, bytes_, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
    return;
  }
  uint64_t at = 0;
  for (Piece& piece : staging_->pieces) {
    uint8_t* const buffer = staging_->buffer;
    if (to_host_) {
      const void* from = static_cast<const uint8_t*>(from_) + at;
      Check(cudaMemcpyAsync(buffer, from, piece.bytes, cudaMemcpyDefault, stream),
            "cudaMemcpyAsync");
      Check(cudaLaunchHostFunc(stream, Piece::Copy, &piece), "cudaLaunchHostFunc");
    } else {
      void* to = static_cast<uint8_t*>(to_) + at;
      Check(cudaLaunchHostFunc(stream, Piece::Copy, &piece), "cudaLaunchHostFunc");
      Check(cudaMemcpyAsync(to, buffer, piece.bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
    }
    at += piece.bytes;
  }
  exec.KeepUntilDone(staging_);
}

void Upload(int device, void* to, const void* from, uint64_t bytes) {
  if (bytes == 0) return;
  Device& owner = Device::Get(device);
  owner.MakeCurrent();
  Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, owner.auxiliary()), "cudaMemcpyAsync");
  Check(cudaStreamSynchronize(owner.auxiliary()), "cudaStreamSynchronize");
}

}  // namespace moe_ep::cuda
