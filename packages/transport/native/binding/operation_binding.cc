// Single operations on a stream.
#include <string>
#include <vector>

#include "binding/bindings.h"
#include "moe_ep/transport/addon.h"
#if MOE_EP_CUDA
#include "cuda/kept_texts.h"
#include "cuda/operations.h"
#endif

namespace moe_ep {
namespace {

// put(stream, routes, peer, byteOffset, source)
Napi::Value Put(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 1);
  const int peer = static_cast<int>(args.integer(2));
  const auto offset = static_cast<uint64_t>(args.integer(3));
  const Tensor source = args.tensor(4);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    const uint64_t bytes = static_cast<uint64_t>(source.numel()) * BitsOf(source.dtype()) / 8;
#if MOE_EP_CUDA
    if (exec.on_cuda()) return cuda::Put(exec, routes, peer, offset, source.data(), bytes);
#endif
    if (!routes.CheckNotPoisoned(exec)) return;
    exec.ParallelFor(
        static_cast<int64_t>(bytes), int64_t{1} << 18, [&](int64_t begin, int64_t end) {
          routes.Put(peer, offset + static_cast<uint64_t>(begin), source.data<uint8_t>() + begin,
                     static_cast<uint64_t>(end - begin));
        });
    routes.Flush();
  });
}

// putAll(stream, routes, [peer, ...], [byteOffset, ...], [source, ...], sms)
Napi::Value PutAll(const Napi::CallbackInfo& info) {
  struct Part {
    int peer;
    uint64_t offset;
    Tensor source;

    uint64_t bytes() const {
      return static_cast<uint64_t>(source.numel()) * BitsOf(source.dtype()) / 8;
    }
  };
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 1);
  const auto peers = args.value(2).As<Napi::Array>();
  const auto offsets = args.value(3).As<Napi::Array>();
  const int64_t sms = args.integer(5);
  std::vector<Part> parts;
  for (uint32_t i = 0; i < peers.Length(); ++i) {
    parts.push_back({peers.Get(i).As<Napi::Number>().Int32Value(),
                     static_cast<uint64_t>(offsets.Get(i).As<Napi::Number>().Int64Value()),
                     args.tensor_in(4, i)});
  }
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
#if MOE_EP_CUDA
    if (exec.on_cuda()) {
      std::vector<cuda::PutPart> puts;
      for (const Part& part : parts) {
        puts.push_back({part.source.data<uint8_t>(), routes.payload(part.peer, part.offset),
                        static_cast<int64_t>(part.bytes())});
      }
      return cuda::PutAll(exec, puts, sms);
    }
#endif
    if (!routes.CheckNotPoisoned(exec)) return;
    for (const Part& part : parts) {
      exec.ParallelFor(
          static_cast<int64_t>(part.bytes()), int64_t{1} << 18, [&](int64_t begin, int64_t end) {
            routes.Put(part.peer, part.offset + static_cast<uint64_t>(begin),
                       part.source.data<uint8_t>() + begin, static_cast<uint64_t>(end - begin));
          });
    }
    routes.Flush();
  });
}

// signal(stream, routes, peer, index, value)
Napi::Value Signal(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 1);
  const int peer = static_cast<int>(args.integer(2));
  const auto index = static_cast<uint64_t>(args.integer(3));
  const auto value = static_cast<uint64_t>(args.integer(4));
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
#if MOE_EP_CUDA
    if (exec.on_cuda()) return cuda::Signal(exec, routes, peer, index, value);
#endif
    if (routes.CheckNotPoisoned(exec)) routes.Signal(peer, index, value);
  });
}

// atomicAdd(stream, routes, peer, index, delta)
Napi::Value AtomicAdd(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 1);
  const int peer = static_cast<int>(args.integer(2));
  const auto index = static_cast<uint64_t>(args.integer(3));
  const int64_t delta = args.integer(4);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
#if MOE_EP_CUDA
    if (exec.on_cuda()) return cuda::Add(exec, routes, peer, index, delta);
#endif
    if (routes.CheckNotPoisoned(exec)) routes.Add(peer, index, delta);
  });
}

// wait(stream, routes, index, value, timeoutMs, what)
Napi::Value Wait(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 1);
  const auto index = static_cast<uint64_t>(args.integer(2));
  const auto value = static_cast<uint64_t>(args.integer(3));
  const int64_t timeout_ms = args.integer(4);
  const std::string what = args.text(5);
#if MOE_EP_CUDA
  if (routes.device() >= 0) {
    const cuda::WaitedSignal wait = {index, value, timeout_ms, cuda::KeepText(what)};
    return Enqueue(args.env(), args.stream(0),
                   [=](const Exec& exec) { cuda::Wait(exec, routes, wait); });
  }
#endif
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    routes.Wait(exec, index, value, DeadlineAfter(timeout_ms), [&] {
      return what + ": signal " + std::to_string(index) + " did not reach " +
             std::to_string(value) + " in " + std::to_string(timeout_ms) + " ms";
    });
  });
}

}  // namespace

void RegisterOperations(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "put", Put);
  Export(env, exports, "putAll", PutAll);
  Export(env, exports, "signal", Signal);
  Export(env, exports, "atomicAdd", AtomicAdd);
  Export(env, exports, "wait", Wait);
}

}  // namespace moe_ep
