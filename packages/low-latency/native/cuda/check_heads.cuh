// What ranks find in one another's heads once all messages of a dispatch are there.
#pragma once

#include "cuda/dispatch.cuh"

namespace moe_ep::cuda {

// Whether all ranks may go on with this dispatch, into `ok`; else the first block reports why not.
// All ranks, and all blocks, find the same, for all see all heads. A warp calls it.
__device__ inline void CheckHeads(const DispatchArguments& a, RankBits present, bool* ok) {
  const DeviceBuffer& buffer = a.buffer;
  const int lane = threadIdx.x % kLanes;
  const int rank = buffer.rank();
  const bool agrees = a.shared.agrees != 0;
  const bool has = lane < buffer.ranks() && TakesPart(present, lane);
  int64_t fields[kNumHeadFields];
  const auto* head = reinterpret_cast<const int64_t*>(&buffer.Head(rank, has ? lane : rank));
#pragma unroll
  for (int i = 0; i < kNumHeadFields; ++i) fields[i] = __ldcg(head + i);
  const int64_t invalid_token = fields[kNumSharedArguments + 1];
  const int64_t invalid_id = fields[kNumSharedArguments + 2];
  const int64_t refusal = fields[kNumSharedArguments + 3];
  const auto mask = static_cast<uint32_t>(fields[kMaskArgument]);
  const uint32_t masked = __reduce_or_sync(kAllLanes, has ? mask : 0u);
  // Who is masked by one rank is not heard by all, so ranks that agree do not listen to it.
  const bool heard = has && !(agrees && (masked >> lane & 1u) != 0);
  const uint32_t all_heard = __ballot_sync(kAllLanes, heard);
  const int base = all_heard == 0 ? rank : __ffs(static_cast<int>(all_heard)) - 1;
  int wrong = -1;
  int64_t theirs = 0;
  int64_t expected = 0;
#pragma unroll
  for (int i = kNumSharedArguments - 1; i >= 0; --i) {
    const int64_t first = __shfl_sync(kAllLanes, fields[i], base);
    if (!heard || fields[i] == first || (agrees && i == kMaskArgument)) continue;
    wrong = i;
    theirs = fields[i];
    expected = first;
  }
  const uint32_t refusals = __ballot_sync(kAllLanes, heard && refusal != 0);
  const uint32_t mismatches = __ballot_sync(kAllLanes, wrong >= 0);
  const uint32_t invalids = __ballot_sync(kAllLanes, heard && invalid_token >= 0);
  // Of ranks that agree: whether others mask this one, and who has not yet the mask that this round
  // makes of theirs; this rank's own counts, also where only those who are not heard mask it.
  const bool is_out = __any_sync(kAllLanes, agrees && heard && (mask >> rank & 1u) != 0) != 0;
  const uint32_t unsettled =
      __ballot_sync(kAllLanes, agrees && (heard || lane == rank) && mask != masked);
  const bool passes = (refusals | mismatches | unsettled | invalids) == 0 && !is_out;
  if (lane == 0) *ok = passes;
  if (passes || blockIdx.x != 0) return;
  // Where ranks settle their masks, all that go on mask whom any of them masks: they have seen the
  // same heads. Who is masked by others keeps hearing so.
  if (lane == 0 && (buffer.masks_late || agrees)) MaskToo(buffer, RankBits{masked} & ~BitOf(rank));
  const auto is_first = [&](uint32_t lanes) { return lane == __ffs(static_cast<int>(lanes)) - 1; };
  if (refusals != 0) {
    if (is_first(refusals)) Fail(a.patience.failure, a.describe_refusal, lane, refusal);
  } else if (mismatches != 0) {
    if (is_first(mismatches))
      Fail(a.patience.failure, a.describe_mismatch, wrong, expected, theirs, lane, base);
  } else if (is_out) {
    if (lane == 0) Fail(a.patience.failure, a.describe_masked_out, rank);
  } else if (unsettled != 0) {
    const uint32_t others = unsettled & all_heard;
    if (is_first(others != 0 ? others : unsettled))
      Fail(a.patience.failure, a.describe_mismatch, kMaskArgument, masked, mask, lane, rank);
  } else if (is_first(invalids)) {
    Fail(a.patience.failure, a.describe_invalid_id, lane, invalid_token, invalid_id,
         a.shared.experts);
  }
}

}  // namespace moe_ep::cuda
