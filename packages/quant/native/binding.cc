#include "binding/common.h"

namespace moe_ep {
namespace {

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  ExportInitialize(env, exports);
  ExportGroupQuant(env, exports);
  ExportSiluMul(env, exports);
  ExportBlockQuant(env, exports);
  ExportTensorQuant(env, exports);
  ExportSmallGroups(env, exports);
  ExportLogFmt(env, exports);
  return exports;
}

}  // namespace
}  // namespace moe_ep

using moe_ep::Initialize;
NODE_API_MODULE(moe_ep_quant, Initialize)
