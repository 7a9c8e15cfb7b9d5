// Segments of host memory that ranks of one node map.
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "binding/bindings.h"
#include "cpu/segment.h"
#include "moe_ep/transport/segment_layout.h"
#if MOE_EP_CUDA
#include "cuda/host_control.h"
#endif

namespace moe_ep {
namespace {

struct Mapping {
  void* base;
  uint64_t bytes;
};

[[noreturn]] void ThrowErrno(Napi::Env env, int error, const std::string& what, uint64_t bytes) {
  const bool memory = error == ENOMEM || error == ENOSPC || error == EFBIG;
  Throw(
      env, memory ? "ERR_MOE_EP_OUT_OF_MEMORY" : "ERR_MOE_EP_CONNECT",
      "symmetric memory of " + std::to_string(bytes) + " bytes: " + what + ": " + strerror(error));
}

// A JavaScript handle that takes over the caller's reference.
Napi::Value HandOver(Napi::Env env, moe_ep_memory* memory) {
  napi_value handle;
  Core().memory_to_js(env, memory, &handle);
  Core().memory_release(memory);
  return Napi::Value(env, handle);
}

// A memory record whose last user unmaps the segment. The descriptor is not needed once a segment
// is mapped.
Napi::Value WrapSegment(Napi::Env env, const cpu::Segment& segment) {
  return HandOver(env, Core().memory_create(
                           segment.base, segment.bytes,
                           [](void* context) {
                             auto* mapping = static_cast<Mapping*>(context);
                             munmap(mapping->base, mapping->bytes);
                             delete mapping;
                           },
                           new Mapping{segment.base, segment.bytes}, /*device=*/-1));
}

// A memfd with the control block of a rank at its begin.
cpu::Segment NewSegment(Napi::Env env, uint64_t bytes, uint64_t payload_bytes,
                        uint64_t num_signals) {
  cpu::Segment segment;
  std::string what;
  if (const int error = cpu::CreateSegment(bytes, &segment, &what))
    ThrowErrno(env, error, what, bytes);
  auto* control = reinterpret_cast<ControlBlock*>(segment.base);
  control->magic = kSegmentMagic;
  control->payload_bytes = payload_bytes;
  control->num_signals = num_signals;
  return segment;
}

// Signals and payload of a rank, behind its first page.
uint64_t SegmentBytes(uint64_t payload_bytes, uint64_t num_signals) {
  return PayloadOffset(num_signals) + (payload_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

// createSegment(payloadBytes, numSignals) -> { memory, descriptor, payloadOffset, byteLength }
Napi::Value CreateSegment(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto payload_bytes = static_cast<uint64_t>(args.integer(0));
  const auto num_signals = static_cast<uint64_t>(args.integer(1));
  const uint64_t bytes = SegmentBytes(payload_bytes, num_signals);
  const cpu::Segment segment = NewSegment(args.env(), bytes, payload_bytes, num_signals);
  auto result = Napi::Object::New(args.env());
  result.Set("memory", WrapSegment(args.env(), segment));
  result.Set("descriptor", segment.descriptor);
  result.Set("payloadOffset", static_cast<double>(PayloadOffset(num_signals)));
  result.Set("byteLength", static_cast<double>(bytes));
  return result;
}

// mapSegment(descriptor, byteLength) -> memory; the descriptor can be closed afterwards.
Napi::Value MapSegment(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const int descriptor = static_cast<int>(args.integer(0));
  const auto bytes = static_cast<uint64_t>(args.integer(1));
  cpu::Segment segment;
  std::string what;
  const int error = cpu::MapSegment(descriptor, bytes, &segment, &what);
  if (error != 0) ThrowErrno(args.env(), error, what, bytes);
  if (reinterpret_cast<const ControlBlock*>(segment.base)->magic != kSegmentMagic) {
    munmap(segment.base, segment.bytes);
    Throw(args.env(), "ERR_MOE_EP_PROTOCOL",
          "a peer sent a descriptor that is no symmetric segment");
  }
  return WrapSegment(args.env(), segment);
}

// segmentLayout(payloadBytes, numSignals) -> { payloadOffset, byteLength }
Napi::Value SegmentLayout(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto payload_bytes = static_cast<uint64_t>(args.integer(0));
  const auto num_signals = static_cast<uint64_t>(args.integer(1));
  auto result = Napi::Object::New(args.env());
  result.Set("payloadOffset", static_cast<double>(PayloadOffset(num_signals)));
  result.Set("byteLength", static_cast<double>(SegmentBytes(payload_bytes, num_signals)));
  return result;
}

// createCudaControl(ordinal, payloadBytes, numSignals) -> { memory, descriptor, byteLength,
// mappingsOffset, hostPoison, poisonId }: a control block without signals and payload, which
// kernels see too. The memory counts as the device's, so that it stays until kernels are done with
// it.
Napi::Value CreateCudaControl(const Napi::CallbackInfo& info) {
  const Arguments args(info);
#if MOE_EP_CUDA
  struct Control {
    int device;
    cpu::Segment segment;
    cuda::HostControl host;

    ControlBlock* block() const { return reinterpret_cast<ControlBlock*>(segment.base); }
  };
  const auto device = static_cast<int>(args.integer(0));
  const cpu::Segment segment =
      NewSegment(args.env(), kControlBytes, static_cast<uint64_t>(args.integer(1)),
                 static_cast<uint64_t>(args.integer(2)));
  auto* control = new Control{device, segment, {}};
  try {
    control->host = cuda::RegisterControl(device, control->block());
  } catch (...) {
    delete control;
    munmap(segment.base, segment.bytes);
    close(segment.descriptor);
    throw;
  }
  moe_ep_memory* memory = Core().memory_create(
      segment.base, segment.bytes,
      [](void* context) {
        auto* control = static_cast<Control*>(context);
        cuda::UnregisterControl(control->device, control->block(), control->host.poison_id);
        munmap(control->segment.base, control->segment.bytes);
        delete control;
      },
      control, device);
  auto result = Napi::Object::New(args.env());
  result.Set("hostPoison",
             Napi::BigInt::New(args.env(), reinterpret_cast<uint64_t>(control->host.poison)));
  result.Set("poisonId", static_cast<double>(control->host.poison_id));
  result.Set("memory", HandOver(args.env(), memory));
  result.Set("descriptor", segment.descriptor);
  result.Set("byteLength", static_cast<double>(segment.bytes));
  result.Set("mappingsOffset", static_cast<double>(offsetof(ControlBlock, ipc_mappings)));
  return result;
#else
  Throw(args.env(), "ERR_MOE_EP_UNSUPPORTED",
        "@moe-ep/transport was built without CUDA: symmetric memory is there for the cpu device "
        "only");
#endif
}

}  // namespace

void RegisterSegments(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "createSegment", CreateSegment);
  Export(env, exports, "mapSegment", MapSegment);
  Export(env, exports, "segmentLayout", SegmentLayout);
  Export(env, exports, "createCudaControl", CreateCudaControl);
}

}  // namespace moe_ep
