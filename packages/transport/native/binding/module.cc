#include "binding/bindings.h"

namespace moe_ep {
namespace {

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  RegisterDescriptors(env, exports);
  RegisterSegments(env, exports);
  RegisterRoutes(env, exports);
  RegisterOperations(env, exports);
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_transport, Initialize)
