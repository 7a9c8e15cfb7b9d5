#include "cpu/combine.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "moe_ep/isa.h"

namespace moe_ep::cpu {
namespace {

constexpr const char* kOperation = "intranode combine";

// Columns summed at a time: accumulators stay in the first-level cache and every loop below vectorises.
constexpr int64_t kBlock = 512;

struct BF16 {
  using Storage = uint16_t;
  static float Load(Storage bits) { return BF16ToFloat(bits); }
  static Storage Store(float value) { return FloatToBF16(value); }
};
struct F16 {
  using Storage = uint16_t;
  static float Load(Storage bits) { return F16ToFloat(bits); }
  static Storage Store(float value) { return FloatToF16(value); }
};
struct F32 {
  using Storage = uint32_t;
  static float Load(Storage bits) { return FloatOfBits(bits); }
  static Storage Store(float value) { return CanonicalF32Bits(value); }
};

// The row in one piece would need `columns` accumulators; blocks need kBlock. The first source starts the sum.
template <typename Format>
MOE_EP_CLONES void SumRows(const typename Format::Storage* const* rows, int count, int64_t columns,
                           typename Format::Storage* out) {
  float sum[kBlock];
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    const int64_t size = std::min(kBlock, columns - begin);
    for (int64_t i = 0; i < size; ++i) sum[i] = Format::Load(rows[0][begin + i]);
    for (int source = 1; source < count; ++source) {
      const typename Format::Storage* row = rows[source] + begin;
      for (int64_t i = 0; i < size; ++i) sum[i] += Format::Load(row[i]);
    }
    for (int64_t i = 0; i < size; ++i) out[begin + i] = Format::Store(sum[i]);
  }
}

template <typename Format>
void SumTokens(const CombineCall& call, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  const Buffer& buffer = *call.buffer;
  const int ranks = buffer.routes.world_size();
  const int64_t columns = call.out.size(1);
  std::vector<const Storage*> rows(static_cast<size_t>(ranks));
  for (int64_t token = begin; token < end; ++token) {
    const auto* head = call.send_head.data<int32_t>() + token * ranks;
    int count = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      if (head[rank] < 0) continue;
      rows[count++] = reinterpret_cast<const Storage*>(buffer.Rows(rank, call.slot)) + int64_t{head[rank]} * columns;
    }
    Storage* out = call.out.data<Storage>() + token * columns;
    if (count == 0) {
      std::fill_n(out, columns, Storage{0});
    } else {
      SumRows<Format>(rows.data(), count, columns, out);
    }
  }
}

// Results must lie where peers can read them: in the slot that their tokens came to.
void Stage(const Exec& exec, const CombineCall& call) {
  uint8_t* slot = call.buffer->Rows(call.buffer->routes.rank(), call.slot);
  const auto* x = call.x.data<uint8_t>();
  if (x == slot) return;
  const int64_t bytes = call.x.numel() * BitsOf(call.x.dtype()) / 8;
  exec.ParallelFor(bytes, int64_t{1} << 18, [&](int64_t begin, int64_t end) {
    std::memcpy(slot + begin, x + begin, static_cast<size_t>(end - begin));
  });
}

}  // namespace

void Combine(const Exec& exec, const CombineCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  const uint64_t epoch = ++buffer.slots[call.slot].combine_epoch;
  Stage(exec, call);
  buffer.routes.Flush();
  buffer.SignalAll(call.slot, SignalKind::kCombineReady, epoch);
  const auto* tokens_at = call.num_tokens_per_rank.data<int32_t>();
  for (int peer = 0; peer < buffer.routes.world_size(); ++peer) {
    if (tokens_at[peer] == 0) continue;
    if (!buffer.WaitFor(exec, call.slot, SignalKind::kCombineReady, peer, epoch, deadline, kOperation, "results")) return;
  }
  exec.ParallelFor(call.out.size(0), 8, [&](int64_t begin, int64_t end) {
    switch (call.out.dtype()) {
      case DType::kBF16:
        return SumTokens<BF16>(call, begin, end);
      case DType::kF16:
        return SumTokens<F16>(call, begin, end);
      default:
        return SumTokens<F32>(call, begin, end);
    }
  });
  buffer.SignalAll(call.slot, SignalKind::kCombineRead, epoch);
}

}  // namespace moe_ep::cpu
