// Sockets that carry file descriptors between ranks of one node.
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <vector>

#include "binding/bindings.h"
#include "cpu/descriptor_socket.h"

namespace moe_ep {
namespace {

Napi::Value CloseDescriptor(const Napi::CallbackInfo& info) {
  close(static_cast<int>(Arguments(info).integer(0)));
  return info.Env().Undefined();
}

// openDescriptorSocket(name) -> socket
Napi::Value OpenDescriptorSocket(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const int handle = cpu::OpenDescriptorSocket(args.text(0));
  if (handle < 0)
    Throw(args.env(), "ERR_MOE_EP_CONNECT",
          std::string("cannot open a Unix socket: ") + strerror(errno));
  return Napi::Number::New(args.env(), handle);
}

// sendDescriptor(socket, peerName, descriptor, payload) -> false: try again later
Napi::Value SendDescriptor(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto payload = args.value(3).As<Napi::Uint8Array>();
  const std::vector<uint8_t> bytes(payload.Data(), payload.Data() + payload.ByteLength());
  const auto outcome = cpu::SendDescriptor(static_cast<int>(args.integer(0)), args.text(1),
                                           static_cast<int>(args.integer(2)), bytes);
  if (outcome == cpu::Transfer::kFailed) {
    Throw(args.env(), "ERR_MOE_EP_CONNECT",
          std::string("cannot send a memory descriptor: ") + strerror(errno));
  }
  return Napi::Boolean::New(args.env(), outcome == cpu::Transfer::kDone);
}

// receiveDescriptor(socket) -> { descriptor, payload } | undefined: nothing there
Napi::Value ReceiveDescriptor(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  int descriptor = -1;
  std::vector<uint8_t> payload;
  const auto outcome =
      cpu::ReceiveDescriptor(static_cast<int>(args.integer(0)), &descriptor, &payload);
  if (outcome == cpu::Transfer::kFailed) {
    Throw(args.env(), "ERR_MOE_EP_CONNECT",
          std::string("cannot receive a memory descriptor: ") + strerror(errno));
  }
  if (outcome == cpu::Transfer::kTryAgain) return args.env().Undefined();
  auto result = Napi::Object::New(args.env());
  result.Set("descriptor", descriptor);
  auto bytes = Napi::Uint8Array::New(args.env(), payload.size());
  memcpy(bytes.Data(), payload.data(), payload.size());
  result.Set("payload", bytes);
  return result;
}

}  // namespace

void RegisterDescriptors(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "closeDescriptor", CloseDescriptor);
  Export(env, exports, "openDescriptorSocket", OpenDescriptorSocket);
  Export(env, exports, "sendDescriptor", SendDescriptor);
  Export(env, exports, "receiveDescriptor", ReceiveDescriptor);
}

}  // namespace moe_ep
