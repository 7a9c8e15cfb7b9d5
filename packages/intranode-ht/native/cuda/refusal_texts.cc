#include "cuda/refusal_texts.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <string>

#include "moe_ep/cuda/check.h"

namespace moe_ep::cuda {

RefusalText* NextRefusalText() {
  constexpr uint32_t kPlaces = 256;
  static std::atomic<uint32_t> next = 0;
  // Never freed: failures may be read after everything else is gone.
  static RefusalText* const places = [] {
    void* memory = nullptr;
    Check(cudaHostAlloc(&memory, kPlaces * sizeof(RefusalText),
                        cudaHostAllocPortable | cudaHostAllocMapped),
          "cudaHostAlloc");
    std::memset(memory, 0, kPlaces * sizeof(RefusalText));
    return static_cast<RefusalText*>(memory);
  }();
  return &places[next++ % kPlaces];
}

void DescribeRefusal(const int64_t* values, moe_ep_failure_text* text) {
  const auto& [rank, refusal] = *reinterpret_cast<const RefusalText*>(values[0]);
  const char* operation = values[1] != 0 ? kCombineOperation : kDispatchOperation;
  const std::string message =
      std::string(operation) + ": refused by rank " + std::to_string(rank) + ": " + refusal.words;
  std::strncpy(text->code, refusal.code, sizeof(text->code) - 1);
  std::strncpy(text->message, message.c_str(), sizeof(text->message) - 1);
}

}  // namespace moe_ep::cuda
