// What kernels use of clusters. One is a whole grid here.
#pragma once

#include "grid.h"

namespace cooperative_groups {

class cluster_group {
 public:
  void sync() const { software_cuda::SyncGrid(); }
  template <typename T>
  T* map_shared_rank(T* pointer, unsigned block) const {
    return static_cast<T*>(software_cuda::SharedOf(pointer, block));
  }
  unsigned block_rank() const { return software_cuda::BlockIndex().x; }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
