// The table of routes, and what is looked at or ended through it without a stream.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "binding/bindings.h"
#include "moe_ep/transport/addon.h"
#if MOE_EP_CUDA
#include "cuda/device_words.h"
#include "cuda/poison_texts.h"
#include "moe_ep/transport/poison_word.h"
#endif

namespace moe_ep {
namespace {

struct OwnedTable {
  moe_ep_route_table table = {};
  std::vector<moe_ep_route> routes;
  std::vector<moe_ep_memory*> memories;

  ~OwnedTable() {
    for (moe_ep_memory* memory : memories) Core().memory_release(memory);
  }

  // Address of a memory that the table keeps; null for undefined.
  uint8_t* Keep(Napi::Env env, Napi::Value value) {
    moe_ep_memory* memory = value.IsExternal() ? Core().memory_from_js(env, value) : nullptr;
    if (memory == nullptr) return nullptr;
    auto* base = static_cast<uint8_t*>(Core().memory_pin(memory));
    if (base == nullptr) Throw(env, "ERR_MOE_EP_RELEASED", "the symmetric memory was closed");
    Core().memory_unpin(memory);  // users of the table pin for themselves
    Core().memory_retain(memory);
    memories.push_back(memory);
    return base;
  }

  void Add(uint8_t* base, void* control) {
    routes.push_back({.kind = base == nullptr ? MOE_EP_ROUTE_NONE : MOE_EP_ROUTE_PEER,
                      .reserved = 0,
                      .base = base,
                      .control = control});
  }

  // What tables of all devices have.
  void Fill(int32_t device, int64_t rank, int64_t num_signals, int64_t payload_bytes) {
    table.size = sizeof(moe_ep_route_table);
    table.rank = static_cast<int32_t>(rank);
    table.world_size = static_cast<int32_t>(routes.size());
    table.device = device;
    table.num_signals = static_cast<uint64_t>(num_signals);
    table.payload_offset = PayloadOffset(table.num_signals);
    table.payload_bytes = static_cast<uint64_t>(payload_bytes);
    table.routes = routes.data();
    table.memories = memories.data();
    table.num_memories = memories.size();
  }
};

Napi::Value HandOver(Napi::Env env, std::unique_ptr<OwnedTable> owned) {
  moe_ep_route_table* table = &owned->table;
  Napi::Value external = Napi::External<moe_ep_route_table>::New(
      env, table, [](Napi::Env, moe_ep_route_table*, OwnedTable* held) { delete held; },
      owned.release());
  napi_type_tag_object(env, external, &kRouteTableTag);
  return external;
}

// createRoutes(rank, memories: (memory | undefined)[], numSignals, payloadBytes, spinIterations) ->
// routes
Napi::Value CreateRoutes(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const auto memories = args.value(1).As<Napi::Array>();
  auto owned = std::make_unique<OwnedTable>();
  for (uint32_t peer = 0; peer < memories.Length(); ++peer) {
    uint8_t* const base = owned->Keep(args.env(), memories.Get(peer));
    owned->Add(base, base);
  }
  owned->Fill(/*device=*/-1, args.integer(0), args.integer(2), args.integer(3));
  owned->table.spin_iterations = static_cast<int32_t>(args.integer(4));
  return HandOver(args.env(), std::move(owned));
}

// createCudaRoutes(ordinal, rank, memories: (memory | undefined)[], controls: (memory |
// undefined)[], bases: memory of 8 bytes a rank on the device, numSignals, payloadBytes,
// hostPoison, poisonId) -> routes
Napi::Value CreateCudaRoutes(const Napi::CallbackInfo& info) {
  const Arguments args(info);
#if MOE_EP_CUDA
  const auto device = static_cast<int32_t>(args.integer(0));
  const auto memories = args.value(2).As<Napi::Array>();
  const auto controls = args.value(3).As<Napi::Array>();
  auto owned = std::make_unique<OwnedTable>();
  std::vector<uint8_t*> bases;
  for (uint32_t peer = 0; peer < memories.Length(); ++peer) {
    bases.push_back(owned->Keep(args.env(), memories.Get(peer)));
    owned->Add(bases.back(), owned->Keep(args.env(), controls.Get(peer)));
  }
  uint8_t* const device_bases = owned->Keep(args.env(), args.value(4));
  cuda::WriteDeviceMemory(device, device_bases, bases.data(), bases.size() * sizeof(uint8_t*));
  owned->Fill(device, args.integer(1), args.integer(5), args.integer(6));
  bool lossless = false;
  const uint64_t host_poison = args.value(7).As<Napi::BigInt>().Uint64Value(&lossless);
  owned->table.device_bases = reinterpret_cast<uint8_t* const*>(device_bases);
  owned->table.host_poison = reinterpret_cast<const uint32_t*>(host_poison);
  owned->table.describe_poison = cuda::DescribePoison;
  owned->table.poison_id = args.integer(8);
  return HandOver(args.env(), std::move(owned));
#else
  Throw(args.env(), "ERR_MOE_EP_UNSUPPORTED", "@moe-ep/transport was built without CUDA");
#endif
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

Napi::Value FailureObject(Napi::Env env, const char* code, const char* message) {
  auto result = Napi::Object::New(env);
  result.Set("code", std::string(code));
  result.Set("message", std::string(message));
  return result;
}

// poisonOf(routes) -> { code, message } | undefined
Napi::Value PoisonOf(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 0);
  const PoisonRecord& poison = routes.own_poison();
  if (poison.state.load(std::memory_order_acquire) == PoisonRecord::kPoisoned)
    return FailureObject(args.env(), poison.code, poison.message);
#if MOE_EP_CUDA
  if (routes.device() >= 0) {
    const moe_ep_route_table& table = routes.table();
    const uint8_t* const base = routes.base(routes.rank());
    const int64_t word = static_cast<int64_t>(cuda::ReadDeviceWord(
        routes.device(), &reinterpret_cast<const DeviceControl*>(base)->poison));
    if (word == 0) return args.env().Undefined();
    const int64_t values[] = {word, routes.rank(), table.poison_id};
    moe_ep_failure_text text;
    table.describe_poison(values, &text);
    return FailureObject(args.env(), text.code, text.message);
  }
#endif
  return args.env().Undefined();
}

// signalValue(routes, peer, index) -> bigint
Napi::Value SignalValue(const Napi::CallbackInfo& info) {
  const Arguments args(info);
  const Routes routes = RoutesArgument(args, 0);
  const SignalCell& cell =
      routes.signal(static_cast<int>(args.integer(1)), static_cast<uint64_t>(args.integer(2)));
#if MOE_EP_CUDA
  if (routes.device() >= 0)
    return Napi::BigInt::New(args.env(), cuda::ReadDeviceWord(routes.device(), &cell.value));
#endif
  return Napi::BigInt::New(args.env(), cell.value.load(std::memory_order_acquire));
}

}  // namespace

void RegisterRoutes(Napi::Env env, Napi::Object exports) {
  Export(env, exports, "createRoutes", CreateRoutes);
  Export(env, exports, "createCudaRoutes", CreateCudaRoutes);
  Export(env, exports, "poison", PoisonGroup);
  Export(env, exports, "poisonOf", PoisonOf);
  Export(env, exports, "signalValue", SignalValue);
}

}  // namespace moe_ep
