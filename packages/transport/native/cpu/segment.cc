#include "cpu/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace moe_ep::cpu {
namespace {

int Map(int descriptor, uint64_t bytes, Segment* segment, std::string* what) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED) {
    *what = "mmap";
    return errno;
  }
#ifdef MADV_HUGEPAGE
  madvise(base, bytes, MADV_HUGEPAGE);  // where the kernel allows huge pages for shared memory
#endif
  *segment = {descriptor, static_cast<uint8_t*>(base), bytes};
  return 0;
}

}  // namespace

int CreateSegment(uint64_t bytes, Segment* segment, std::string* what) {
  const int descriptor = memfd_create("moe-ep", MFD_CLOEXEC);
  if (descriptor < 0) {
    *what = "memfd_create";
    return errno;
  }
  int error = 0;
  if (fallocate(descriptor, 0, 0, static_cast<off_t>(bytes)) != 0) {
    *what = "fallocate";
    error = errno;
  } else {
    error = Map(descriptor, bytes, segment, what);
  }
  if (error != 0) close(descriptor);
  return error;
}

int MapSegment(int descriptor, uint64_t bytes, Segment* segment, std::string* what) {
  struct stat status;
  if (fstat(descriptor, &status) != 0) {
    *what = "fstat";
    return errno;
  }
  if (static_cast<uint64_t>(status.st_size) != bytes) {
    *what = "size of the peer's segment";
    return EINVAL;
  }
  return Map(descriptor, bytes, segment, what);
}

}  // namespace moe_ep::cpu
