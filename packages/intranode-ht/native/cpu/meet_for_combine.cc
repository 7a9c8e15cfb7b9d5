#include "cpu/meet_for_combine.h"

#include "cpu/refusal.h"
#include "cpu/row_copy.h"
#include "failures.h"

namespace moe_ep::cpu {
namespace {

// Every rank looks at the heads of all in the same order, so all refuse alike.
bool CheckHeads(const Exec& exec, const Buffer& buffer, int64_t slot) {
  const auto refusal_of = [&](int rank) -> const Refusal& {
    return buffer.CombineHeadOf(rank, slot).refusal;
  };
  if (!CheckRefusals(exec, buffer.routes.world_size(), kCombineOperation, refusal_of)) return false;
  const CombineArguments& first = buffer.CombineHeadOf(0, slot).arguments;
  for (int rank = 1; rank < buffer.routes.world_size(); ++rank) {
    const CombineArguments& other = buffer.CombineHeadOf(rank, slot).arguments;
    if (first.columns == other.columns && first.dtype == other.dtype && first.topk == other.topk)
      continue;
    FailWith(exec, DescribeCombineMismatch, first.columns, first.dtype, first.topk,
             PackPair(rank, other.columns), PackPair(other.dtype, other.topk));
    return false;
  }
  return true;
}

}  // namespace

void StageBytes(const Exec& exec, const uint8_t* from, uint8_t* to, int64_t bytes) {
  if (from == to) return;
  // Pieces of a page take the place of rows.
  constexpr int64_t kPiece = 4096;
  const RowCopy copy(kPiece, bytes / kPiece);
  exec.ParallelFor(bytes / kPiece, 64, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) copy(to, piece, from, piece);
    copy.Finish();
  });
  const int64_t done = bytes / kPiece * kPiece;
  std::memcpy(to + done, from + done, static_cast<size_t>(bytes - done));
}

bool MeetForCombine(const Exec& exec, const Buffer& buffer, int64_t slot,
                    const CombineArguments& arguments, uint64_t epoch, int64_t deadline) {
  CombineHead& head = buffer.CombineHeadOf(buffer.routes.rank(), slot);
  head.arguments = arguments;
  head.refusal.Clear();
  buffer.routes.Flush();
  buffer.SignalAll(slot, SignalKind::kCombineReady, epoch);
  if (!buffer.WaitForAll(exec, slot, SignalKind::kCombineReady, epoch, deadline, kCombineOperation,
                         "results"))
    return false;
  if (CheckHeads(exec, buffer, slot)) return true;
  // Nobody reads what was refused: the slot may be filled again.
  buffer.SignalAll(slot, SignalKind::kCombineRead, epoch);
  return false;
}

}  // namespace moe_ep::cpu
