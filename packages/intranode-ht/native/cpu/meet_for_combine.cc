#include "cpu/meet_for_combine.h"

#include <string>

#include "cpu/row_copy.h"

namespace moe_ep::cpu {
namespace {

std::string Describe(int rank, const CombineArguments& arguments) {
  return "rank " + std::to_string(rank) + " passed rows of " + std::to_string(arguments.columns) +
         " elements of " + std::to_string(BitsOf(static_cast<DType>(arguments.dtype))) +
         " bits (dtype " + std::to_string(arguments.dtype) + ") with " +
         std::to_string(arguments.topk) + " weights";
}

// False, with every rank told, when `peer` brings results of another shape: some ranks may have
// read them already.
bool CheckArguments(const Exec& exec, const Buffer& buffer, int64_t slot, int peer) {
  const CombineArguments& own = buffer.CombineArgumentsOf(buffer.routes.rank(), slot);
  const CombineArguments& theirs = buffer.CombineArgumentsOf(peer, slot);
  if (own.columns == theirs.columns && own.dtype == theirs.dtype && own.topk == theirs.topk)
    return true;
  buffer.routes.Poison(exec, "ERR_MOE_EP_MISMATCH",
                       std::string(kCombineOperation) + ": " + Describe(buffer.routes.rank(), own) +
                           ", " + Describe(peer, theirs));
  return false;
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

bool MeetForCombine(const Exec& exec, Buffer& buffer, int64_t slot,
                    const CombineArguments& arguments, const Tensor& num_tokens_per_rank,
                    uint64_t epoch, int64_t deadline) {
  buffer.CombineArgumentsOf(buffer.routes.rank(), slot) = arguments;
  buffer.routes.Flush();
  buffer.SignalAll(slot, SignalKind::kCombineReady, epoch);
  const auto* tokens_at = num_tokens_per_rank.data<int32_t>();
  for (int peer = 0; peer < buffer.routes.world_size(); ++peer) {
    if (tokens_at[peer] == 0) continue;
    if (!buffer.WaitFor(exec, slot, SignalKind::kCombineReady, peer, epoch, deadline,
                        kCombineOperation, "results"))
      return false;
    if (!CheckArguments(exec, buffer, slot, peer)) return false;
  }
  return true;
}

}  // namespace moe_ep::cpu
