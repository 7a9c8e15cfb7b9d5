#include "cpu/descriptor_socket.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace moe_ep::cpu {
namespace {

constexpr size_t kMaxPayload = 256;

// Abstract names begin with a zero byte and leave nothing behind in the file system.
socklen_t AbstractAddress(const std::string& name, sockaddr_un* address) {
  memset(address, 0, sizeof(*address));
  address->sun_family = AF_UNIX;
  const size_t length =
      name.size() < sizeof(address->sun_path) - 1 ? name.size() : sizeof(address->sun_path) - 1;
  memcpy(address->sun_path + 1, name.data(), length);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
}

Transfer FromErrno() {
  switch (errno) {
    case EAGAIN:
    case EINTR:
    case ENOBUFS:
    case ETOOMANYREFS:
      return Transfer::kTryAgain;
    default:
      return Transfer::kFailed;
  }
}

}  // namespace

int OpenDescriptorSocket(const std::string& name) {
  const int handle = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (handle < 0) return -1;
  sockaddr_un address;
  const socklen_t length = AbstractAddress(name, &address);
  if (bind(handle, reinterpret_cast<sockaddr*>(&address), length) == 0) return handle;
  const int error = errno;
  close(handle);
  errno = error;
  return -1;
}

Transfer SendDescriptor(int socket, const std::string& peer_name, int descriptor,
                        const std::vector<uint8_t>& payload) {
  sockaddr_un address;
  iovec bytes = {const_cast<uint8_t*>(payload.data()), payload.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_namelen = AbstractAddress(peer_name, &address);
  message.msg_name = &address;
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ? Transfer::kDone
                                                                     : FromErrno();
}

Transfer ReceiveDescriptor(int socket, int* descriptor, std::vector<uint8_t>* payload) {
  payload->resize(kMaxPayload);
  iovec bytes = {payload->data(), payload->size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)] = {};
  msghdr message = {};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t received = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (received < 0) return FromErrno();
  payload->resize(static_cast<size_t>(received));
  *descriptor = -1;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int arrived;
      memcpy(&arrived, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      // One is what the protocol sends; more would leak.
      if (*descriptor == -1) {
        *descriptor = arrived;
      } else {
        close(arrived);
      }
    }
  }
  return Transfer::kDone;
}

}  // namespace moe_ep::cpu
