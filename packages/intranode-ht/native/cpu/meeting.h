// Where ranks agree on one dispatch: each leaves a message at every other.
#pragma once

#include "buffer.h"

namespace moe_ep::cpu {

struct Meeting {
  const Buffer& buffer;
  int64_t slot;
  uint64_t epoch;

  // What `source` told this rank.
  Message From(int source) const { return At(buffer.routes.rank(), source); }
  // What this rank tells `peer`.
  Message To(int peer) const { return At(peer, buffer.routes.rank()); }

 private:
  Message At(int rank, int source) const {
    return {buffer.Counts(rank, slot, source, epoch), buffer.routes.world_size(),
            buffer.layout.max_experts};
  }
};

}  // namespace moe_ep::cpu
