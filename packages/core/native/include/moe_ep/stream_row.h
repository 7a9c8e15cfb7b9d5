// Copies of rows to places that are not read again soon.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace moe_ep {

// Whether `rows` rows of `row_bytes` leave the caches anyway. Below that they fit, and whoever
// reads them next finds them there.
constexpr bool WorthStreaming(int64_t row_bytes, int64_t rows) {
  return row_bytes >= 512 && row_bytes * rows >= int64_t{8} << 20;
}

// Like memcpy, but past the caches where the machine can: the destination lines need not be read
// first, which is a third of the traffic of a copy, and the source row stays cached for its next
// destination. Call FinishStreaming() when done.
inline void StreamRow(uint8_t* to, const uint8_t* from, int64_t bytes) {
#if defined(__SSE2__)
  constexpr int64_t kLine = 64;
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(to) & (kLine - 1));
  std::memcpy(to, from, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + kLine <= bytes; i += kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(from + i);
    auto* target = reinterpret_cast<__m128i*>(to + i);
    const __m128i a = _mm_loadu_si128(source);
    const __m128i b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2);
    const __m128i d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  std::memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// Orders streamed rows before everything that this thread writes later; locks do not.
inline void FinishStreaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace moe_ep
