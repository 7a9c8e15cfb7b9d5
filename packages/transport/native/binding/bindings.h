// The parts of this addon's Node-API side: each exports its functions.
#pragma once

#include "moe_ep/addon.h"

namespace moe_ep {

void RegisterDescriptors(Napi::Env env, Napi::Object exports);
void RegisterSegments(Napi::Env env, Napi::Object exports);
void RegisterRoutes(Napi::Env env, Napi::Object exports);
void RegisterOperations(Napi::Env env, Napi::Object exports);

}  // namespace moe_ep
