// Where ranks agree on one dispatch: what every block looks at when all messages are here, and what
// one thread reports.
#pragma once

#include "cuda/device_buffer.cuh"
#include "cuda/refusal_texts.h"
#include "failures.h"

namespace moe_ep::cuda {

// Host functions and memory that failures refer to.
struct Reporting {
  moe_ep_describe_failure mismatch;
  moe_ep_describe_failure capacity;
  moe_ep_describe_failure invalid_id;
  moe_ep_describe_failure combine_mismatch;
  moe_ep_describe_failure unsettled;
  moe_ep_describe_failure refusal;
  RefusalText* refusal_text;
};

inline Reporting MakeReporting() {
  return {DescribeMismatch,  DescribeCapacity, DescribeInvalidId, DescribeCombineMismatch,
          DescribeUnsettled, DescribeRefusal,  NextRefusalText()};
}

__device__ inline void FailWithRefusal(const Reporting& reporting, const Refusal& refusal, int rank,
                                       bool combine, moe_ep_failure_record* failure) {
  reporting.refusal_text->rank = rank;
  reporting.refusal_text->refusal = refusal;
  __threadfence_system();
  Fail(failure, reporting.refusal, reinterpret_cast<int64_t>(reporting.refusal_text), combine);
}

// Whether something is wrong with the heads of this epoch's messages. All threads of a block call
// it.
__device__ inline bool AnyHeadIsWrong(const DeviceBuffer& buffer, uint64_t epoch) {
  constexpr int kFields = kNumSharedArguments + 2;
  const DeviceBuffer::Inbox inbox = buffer.InboxOf(epoch);
  const auto head_of = [&](int source) -> const MessageHead& { return inbox.From(source).head(); };
  bool wrong = false;
  // From the last thread on: the first ones may be waiting for counts.
  for (int i = static_cast<int>(blockDim.x) - 1 - static_cast<int>(threadIdx.x);
       i < buffer.ranks() * kFields; i += static_cast<int>(blockDim.x)) {
    const int field = i % kFields;
    const MessageHead& head = head_of(i / kFields);
    if (field == kNumSharedArguments) {
      wrong |= head.refusal.given();
    } else if (field > kNumSharedArguments) {
      wrong |= head.invalid.token >= 0;
    } else {
      wrong |= reinterpret_cast<const int64_t*>(&head.arguments)[field] !=
               reinterpret_cast<const int64_t*>(&head_of(0).arguments)[field];
    }
  }
  return __syncthreads_or(wrong);
}

// Says what: the same on all ranks, for all look in the same order. One thread calls it.
__device__ inline void FailForHeads(const DeviceBuffer& buffer, uint64_t epoch,
                                    const Reporting& reporting, moe_ep_failure_record* failure) {
  const auto head_of = [&](int source) -> const MessageHead& {
    return buffer.MessageAt(buffer.rank(), source, epoch).head();
  };
  for (int source = 0; source < buffer.ranks(); ++source) {
    const Refusal& refusal = head_of(source).refusal;
    if (refusal.given()) return FailWithRefusal(reporting, refusal, source, false, failure);
  }
  const auto* first = reinterpret_cast<const int64_t*>(&head_of(0).arguments);
  for (int source = 1; source < buffer.ranks(); ++source) {
    const auto* other = reinterpret_cast<const int64_t*>(&head_of(source).arguments);
    for (int field = 0; field < kNumSharedArguments; ++field) {
      if (first[field] != other[field])
        return Fail(failure, reporting.mismatch, field, first[field], other[field], source);
    }
  }
  for (int source = 0; source < buffer.ranks(); ++source) {
    const MessageHead& head = head_of(source);
    if (head.invalid.token >= 0)
      return Fail(failure, reporting.invalid_id, source, head.arguments.experts, head.invalid.id,
                  head.invalid.token);
  }
}

__device__ inline void FillHead(MessageHead& head, const SharedArguments& arguments,
                                const InvalidId& invalid, int64_t room, int64_t tokens) {
  head.arguments = arguments;
  head.invalid = invalid;
  head.room = room;
  head.tokens = tokens;
  head.refusal.Clear();
}

// Whether rows may be sent: the same for all threads of a block. A thread of the first block says
// why not.
__device__ inline bool MaySend(const SlotEpochs& epochs, const Reporting& reporting,
                               moe_ep_failure_record* failure) {
  if (FailedForBlock(failure)) return false;
  // Without counts that all agreed on, rows would go anywhere.
  if (epochs.settled == epochs.dispatch) return true;
  if (blockIdx.x == 0 && threadIdx.x == 0) Fail(failure, reporting.unsettled);
  return false;
}

// Tells all ranks that this rank's rows are with them, and waits for theirs; nothing of that where
// the stream has failed. A warp of the last block calls it.
__device__ inline void EndSend(const DeviceBuffer& buffer, const Patience& patience,
                               uint64_t begin_ns, uint64_t epoch, moe_ep_failure_record* snapshot,
                               int lane) {
  bool ok = !FailedForWarp(patience.failure);
  if (ok) {
    SignalAll(buffer, SignalKind::kRows, epoch, lane);
    ok = WaitForAll(buffer, patience, begin_ns, SignalKind::kRows, epoch,
                    Operation::kIntranodeDispatch, Missing::kRows, lane);
  }
  if (!ok && lane == 0) SnapshotFailure(patience.failure, snapshot);
}

}  // namespace moe_ep::cuda
