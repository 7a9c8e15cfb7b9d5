// Node-API side of symmetric memory: segments, descriptor sockets, the route table, and single
// operations on a stream.
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "cpu/descriptor_socket.h"
#include "cpu/segment.h"
#include "moe_ep/transport/addon.h"

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

// A memory record whose last user unmaps the segment. The descriptor is not needed once a segment
// is mapped.
Napi::Value WrapSegment(Napi::Env env, const cpu::Segment& segment) {
  moe_ep_memory* memory = Core().memory_create(
      segment.base, segment.bytes,
      [](void* context) {
        auto* mapping = static_cast<Mapping*>(context);
        munmap(mapping->base, mapping->bytes);
        delete mapping;
      },
      new Mapping{segment.base, segment.bytes}, /*device=*/-1);
  napi_value handle;
  Core().memory_to_js(env, memory, &handle);
  Core().memory_release(memory);
  return Napi::Value(env, handle);
}

// createSegment(payloadBytes, numSignals) -> { memory, descriptor, payloadOffset, byteLength }
Napi::Value CreateSegment(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto payload_bytes = static_cast<uint64_t>(args.integer(0));
  const auto num_signals = static_cast<uint64_t>(args.integer(1));
  const uint64_t bytes =
      PayloadOffset(num_signals) + (payload_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  cpu::Segment segment;
  std::string what;
  if (const int error = cpu::CreateSegment(bytes, &segment, &what))
    ThrowErrno(args.env(), error, what, bytes);
  auto* control = reinterpret_cast<ControlBlock*>(segment.base);
  control->magic = kSegmentMagic;
  control->payload_bytes = payload_bytes;
  control->num_signals = num_signals;
  auto result = Napi::Object::New(args.env());
  result.Set("memory", WrapSegment(args.env(), segment));
  result.Set("descriptor", segment.descriptor);
  result.Set("payloadOffset", static_cast<double>(PayloadOffset(num_signals)));
  result.Set("byteLength", static_cast<double>(bytes));
  return result;
}

// mapSegment(descriptor, byteLength) -> memory; closes the descriptor in every case.
Napi::Value MapSegment(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const int descriptor = static_cast<int>(args.integer(0));
  const auto bytes = static_cast<uint64_t>(args.integer(1));
  cpu::Segment segment;
  std::string what;
  const int error = cpu::MapSegment(descriptor, bytes, &segment, &what);
  close(descriptor);
  if (error != 0) ThrowErrno(args.env(), error, what, bytes);
  if (reinterpret_cast<const ControlBlock*>(segment.base)->magic != kSegmentMagic) {
    munmap(segment.base, segment.bytes);
    Throw(args.env(), "ERR_MOE_EP_PROTOCOL",
          "a peer sent a descriptor that is no symmetric segment");
  }
  return WrapSegment(args.env(), segment);
}

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

struct OwnedTable {
  moe_ep_route_table table = {};
  std::vector<moe_ep_route> routes;
  std::vector<moe_ep_memory*> memories;

  ~OwnedTable() {
    for (moe_ep_memory* memory : memories) Core().memory_release(memory);
  }

  // Address of a memory that the table keeps.
  uint8_t* Keep(Napi::Env env, moe_ep_memory* memory) {
    auto* base = static_cast<uint8_t*>(Core().memory_pin(memory));
    if (base == nullptr) Throw(env, "ERR_MOE_EP_RELEASED", "the symmetric memory was closed");
    Core().memory_unpin(memory);  // users of the table pin for themselves
    Core().memory_retain(memory);
    memories.push_back(memory);
    return base;
  }
};

// createRoutes(rank, memories: (memory | undefined)[], numSignals, payloadBytes, spinIterations) ->
// routes
Napi::Value CreateRoutes(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto memories = args.value(1).As<Napi::Array>();
  const auto num_signals = static_cast<uint64_t>(args.integer(2));
  auto owned = std::make_unique<OwnedTable>();
  for (uint32_t peer = 0; peer < memories.Length(); ++peer) {
    Napi::Value value = memories.Get(peer);
    moe_ep_memory* memory = value.IsExternal() ? Core().memory_from_js(args.env(), value) : nullptr;
    if (memory == nullptr) {
      owned->routes.push_back({.kind = MOE_EP_ROUTE_NONE});
      continue;
    }
    uint8_t* base = owned->Keep(args.env(), memory);
    owned->routes.push_back({.kind = MOE_EP_ROUTE_PEER, .base = base, .control = base});
  }
  owned->table = {
      .size = sizeof(moe_ep_route_table),
      .rank = static_cast<int32_t>(args.integer(0)),
      .world_size = static_cast<int32_t>(owned->routes.size()),
      .device = -1,
      .spin_iterations = static_cast<int32_t>(args.integer(4)),
      .num_signals = num_signals,
      .payload_offset = PayloadOffset(num_signals),
      .payload_bytes = static_cast<uint64_t>(args.integer(3)),
      .routes = owned->routes.data(),
      .memories = owned->memories.data(),
      .num_memories = owned->memories.size(),
  };
  moe_ep_route_table* table = &owned->table;
  Napi::Value external = Napi::External<moe_ep_route_table>::New(
      args.env(), table, [](Napi::Env, moe_ep_route_table*, OwnedTable* held) { delete held; },
      owned.release());
  napi_type_tag_object(args.env(), external, &kRouteTableTag);
  return external;
}

// poison(routes, code, message, everybody)
Napi::Value PoisonGroup(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 0);
  if (args.boolean(3)) {
    routes.PoisonAll(args.text(1).c_str(), args.text(2));
  } else {
    routes.PoisonOne(routes.rank(), args.text(1).c_str(), args.text(2));
  }
  return args.env().Undefined();
}

// poisonOf(routes) -> { code, message } | undefined
Napi::Value PoisonOf(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 0);
  const PoisonRecord& poison = routes.own_poison();
  if (poison.state.load(std::memory_order_acquire) != PoisonRecord::kPoisoned)
    return args.env().Undefined();
  auto result = Napi::Object::New(args.env());
  result.Set("code", std::string(poison.code));
  result.Set("message", std::string(poison.message));
  return result;
}

// put(stream, routes, peer, byteOffset, source)
Napi::Value Put(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 1);
  const int peer = static_cast<int>(args.integer(2));
  const auto offset = static_cast<uint64_t>(args.integer(3));
  const Tensor source = args.tensor(4);
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    if (!routes.CheckNotPoisoned(exec)) return;
    const uint64_t bytes = static_cast<uint64_t>(source.numel()) * BitsOf(source.dtype()) / 8;
    exec.ParallelFor(
        static_cast<int64_t>(bytes), int64_t{1} << 18, [&](int64_t begin, int64_t end) {
          routes.Put(peer, offset + static_cast<uint64_t>(begin), source.data<uint8_t>() + begin,
                     static_cast<uint64_t>(end - begin));
        });
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
  return Enqueue(args.env(), args.stream(0), [=](const Exec& exec) {
    routes.Wait(exec, index, value, DeadlineAfter(timeout_ms), [&] {
      return what + ": signal " + std::to_string(index) + " did not reach " +
             std::to_string(value) + " in " + std::to_string(timeout_ms) + " ms";
    });
  });
}

// signalValue(routes, peer, index) -> bigint
Napi::Value SignalValue(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 0);
  const SignalCell& cell =
      routes.signal(static_cast<int>(args.integer(1)), static_cast<uint64_t>(args.integer(2)));
  return Napi::BigInt::New(args.env(), cell.value.load(std::memory_order_acquire));
}

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  Export(env, exports, "createSegment", CreateSegment);
  Export(env, exports, "mapSegment", MapSegment);
  Export(env, exports, "closeDescriptor", CloseDescriptor);
  Export(env, exports, "openDescriptorSocket", OpenDescriptorSocket);
  Export(env, exports, "sendDescriptor", SendDescriptor);
  Export(env, exports, "receiveDescriptor", ReceiveDescriptor);
  Export(env, exports, "createRoutes", CreateRoutes);
  Export(env, exports, "poison", PoisonGroup);
  Export(env, exports, "poisonOf", PoisonOf);
  Export(env, exports, "put", Put);
  Export(env, exports, "signal", Signal);
  Export(env, exports, "atomicAdd", AtomicAdd);
  Export(env, exports, "wait", Wait);
  Export(env, exports, "signalValue", SignalValue);
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_transport, Initialize)
