// Copies between tensors of any devices.
#include <cstring>
#include <utility>

#include "binding/handles.h"
#include "moe_ep/command.h"
#include "moe_ep/tensor.h"
#if MOE_EP_CUDA
#include "cuda/copy.h"
#endif

namespace moe_ep {
namespace {

Tensor TensorArgument(const Napi::Value& value) {
  const moe_ep_tensor* native = CoreApi()->tensor_from_js(value.Env(), value);
  if (native == nullptr)
    Throw(value.Env(), "ERR_MOE_EP_ARGUMENT", "expected a native tensor handle");
  Tensor tensor(*native);
  if (!tensor.valid()) Throw(value.Env(), "ERR_MOE_EP_RELEASED", "the tensor's memory was closed");
  return tensor;
}

// copy(stream, from, to): contiguous tensors of the same bytes, at least one on the stream's
// device, the other there or on the cpu.
Napi::Value Copy(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Stream& stream = StreamArgument(info[0]);
  const Tensor from = TensorArgument(info[1]);
  const Tensor to = TensorArgument(info[2]);
  const uint64_t bytes = (static_cast<uint64_t>(from.numel()) * BitsOf(from.dtype()) + 7) / 8;
  moe_ep_command command;
  if (stream.device() < 0) {
    command = MakeCommand([from, to, bytes](const Exec&) {
      if (bytes > 0) std::memmove(to.data(), from.data(), bytes);
    });
  } else {
#if MOE_EP_CUDA
    const cuda::ByteCopy copy(stream.device(), to.data(), to.device() < 0, from.data(),
                              from.device() < 0, bytes);
    command = MakeCommand([from, to, copy](const Exec& exec) {
      copy.Run(exec);
      // The host's bytes are used when the stream gets there.
      exec.KeepUntilDone(std::pair(from, to));
    });
#else
    Throw(env, "ERR_MOE_EP_UNSUPPORTED", "this build has the cpu device only");
#endif
  }
  if (!stream.Enqueue(std::make_shared<Command>(command)))
    Throw(env, "ERR_MOE_EP_RELEASED", "the stream was closed");
  return env.Undefined();
}

}  // namespace

void RegisterCopy(Napi::Env env, Napi::Object exports) {
  // Core's own code finds its table where the other addons find it.
  CoreTable() = CoreApi();
  Export(env, exports, "copy", Copy);
}

}  // namespace moe_ep
