// Reading a route table from a JavaScript argument.
#pragma once

#include "moe_ep/addon.h"
#include "moe_ep/transport/routes.h"

namespace moe_ep {

inline Routes RoutesArgument(const Arguments& args, size_t index) {
  Napi::Value value = args.value(index);
  bool same = false;
  if (value.IsExternal()) napi_check_object_type_tag(args.env(), value, &kRouteTableTag, &same);
  if (!same) Throw(args.env(), "ERR_MOE_EP_ARGUMENT", "expected the routes of a SymmetricMemory");
  Routes routes(*value.As<Napi::External<moe_ep_route_table>>().Data());
  if (!routes.valid()) Throw(args.env(), "ERR_MOE_EP_RELEASED", "the symmetric memory was closed");
  args.RequireDevice(routes.device(), "symmetric memory");
  return routes;
}

}  // namespace moe_ep
