// A datagram socket in the abstract Unix namespace that carries file descriptors between ranks of
// one node. Never blocks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe_ep::cpu {

// Returns the socket, or -1 and errno.
int OpenDescriptorSocket(const std::string& name);

enum class Transfer { kDone, kTryAgain, kFailed };

// Sends `descriptor` with a few bytes of payload to the socket called `peer_name`.
Transfer SendDescriptor(int socket, const std::string& peer_name, int descriptor,
                        const std::vector<uint8_t>& payload);

// Receives one datagram; `descriptor` is -1 when it carried none.
Transfer ReceiveDescriptor(int socket, int* descriptor, std::vector<uint8_t>* payload);

}  // namespace moe_ep::cpu
