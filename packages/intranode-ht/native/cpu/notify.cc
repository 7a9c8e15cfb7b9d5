#include "cpu/notify.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/meeting.h"
#include "cpu/refusal.h"
#include "failures.h"
#include "moe_ep/layout/topk_ids.h"

namespace moe_ep::cpu {
namespace {

// Counts of this rank's own tokens, up to the first id that is none.
InvalidId CountTokens(const NotifyCall& call, const ExpertPlacement& placement) {
  const NotifyOutputs& out = call.out;
  const int64_t ranks = placement.ranks;
  const int64_t tokens = call.topk_idx.size(0);
  const int64_t topk = call.topk_idx.size(1);
  const TopkIds ids(call.topk_idx);
  auto* per_rank = out.num_tokens_per_rank.data<int32_t>();
  auto* per_expert = out.num_tokens_per_expert.data<int32_t>();
  auto* in_rank = out.is_token_in_rank.data<uint8_t>();
  auto* head = out.send_head.data<int32_t>();
  auto* channel_ends = out.channel_prefix_matrix.data<int32_t>();
  const int64_t channels = call.arguments.channels;
  const int64_t tokens_per_channel = std::max<int64_t>(1, (tokens + channels - 1) / channels);
  std::fill_n(per_rank, ranks, 0);
  std::fill_n(per_expert, placement.experts, 0);
  std::memset(in_rank, 0, static_cast<size_t>(tokens * ranks));
  std::fill_n(head, tokens * ranks, -1);
  std::fill_n(channel_ends, ranks * channels, 0);
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t slot = 0; slot < topk; ++slot) {
      const int64_t expert = ids[token * topk + slot];
      if (expert == -1) continue;
      if (expert < 0 || expert >= placement.experts) return {token, expert};
      ++per_expert[expert];
      const int64_t rank = placement.RankOf(expert);
      if (in_rank[token * ranks + rank] != 0) continue;
      in_rank[token * ranks + rank] = 1;
      head[token * ranks + rank] = per_rank[rank]++;
      ++channel_ends[rank * channels + token / tokens_per_channel];
    }
  }
  for (int64_t rank = 0; rank < ranks; ++rank) {
    for (int64_t channel = 1; channel < channels; ++channel) {
      channel_ends[rank * channels + channel] += channel_ends[rank * channels + channel - 1];
    }
  }
  return {-1, -1};
}

void FillHead(MessageHead& head, const SharedArguments& arguments, const InvalidId& invalid,
              int64_t room, int64_t tokens) {
  head.arguments = arguments;
  head.invalid = invalid;
  head.room = room;
  head.tokens = tokens;
  head.refusal.Clear();
}

void SendCounts(const Meeting& meeting, const NotifyCall& call, const ExpertPlacement& placement,
                const InvalidId& invalid) {
  const int64_t channels = call.arguments.channels;
  for (int peer = 0; peer < meeting.buffer.routes.world_size(); ++peer) {
    const Message message = meeting.To(peer);
    FillHead(message.head(), call.arguments, invalid, call.room, call.topk_idx.size(0));
    std::copy_n(call.out.num_tokens_per_rank.data<int32_t>(), placement.ranks,
                message.tokens_per_rank());
    std::copy_n(call.out.num_tokens_per_expert.data<int32_t>(), placement.experts,
                message.per_expert());
    std::copy_n(call.out.channel_prefix_matrix.data<int32_t>() + peer * channels, channels,
                message.channel_ends());
  }
}

// Every rank sees every rank's refusal and arguments, so all refuse alike and nothing is sent.
bool CheckHeads(const Exec& exec, const Meeting& meeting) {
  const int ranks = meeting.buffer.routes.world_size();
  const auto refusal_of = [&](int source) -> const Refusal& {
    return meeting.From(source).head().refusal;
  };
  if (!CheckRefusals(exec, ranks, kDispatchOperation, refusal_of)) return false;
  const auto* first = reinterpret_cast<const int64_t*>(&meeting.From(0).head().arguments);
  for (int source = 1; source < ranks; ++source) {
    const auto* other = reinterpret_cast<const int64_t*>(&meeting.From(source).head().arguments);
    for (int field = 0; field < kNumSharedArguments; ++field) {
      if (first[field] == other[field]) continue;
      FailWith(exec, DescribeMismatch, field, first[field], other[field], source);
      return false;
    }
  }
  return true;
}

// Decided from counts that all ranks hold, before a row moves.
bool CheckRoom(const Exec& exec, const Meeting& meeting, int destination, int64_t rows) {
  const int64_t room = meeting.From(destination).head().room;
  if (rows <= room) return true;
  FailWith(exec, DescribeCapacity, destination, rows, meeting.buffer.layout.capacity, room);
  return false;
}

bool CheckIds(const Exec& exec, const Meeting& meeting, const NotifyCall& call) {
  for (int source = 0; source < meeting.buffer.routes.world_size(); ++source) {
    const InvalidId& invalid = meeting.From(source).head().invalid;
    if (invalid.token < 0) continue;
    FailWith(exec, DescribeInvalidId, source, call.arguments.experts, invalid.id, invalid.token);
    return false;
  }
  return true;
}

int64_t RoundUp(int64_t count, int64_t alignment) {
  return (count + alignment - 1) / alignment * alignment;
}

void DeriveLayout(const Meeting& meeting, const NotifyCall& call,
                  const ExpertPlacement& placement) {
  const int rank = meeting.buffer.routes.rank();
  const int64_t ranks = placement.ranks;
  auto* prefix = call.out.rank_prefix_matrix.data<int32_t>();
  auto* recv_channels = call.out.recv_channel_prefix_matrix.data<int32_t>();
  auto* recv_experts = call.out.num_recv_tokens_per_expert.data<int32_t>();
  auto* selections = call.out.num_recv_selections.data<int32_t>();
  std::fill_n(selections, placement.CountOf(rank), 0);
  for (int64_t source = 0; source < ranks; ++source) {
    const Message message = meeting.From(static_cast<int>(source));
    for (int64_t destination = 0; destination < ranks; ++destination) {
      const int32_t before = source == 0 ? 0 : prefix[(source - 1) * ranks + destination];
      prefix[source * ranks + destination] = before + message.tokens_per_rank()[destination];
    }
    std::copy_n(message.channel_ends(), call.arguments.channels,
                recv_channels + source * call.arguments.channels);
    const int32_t* arriving = message.per_expert() + placement.BeginOf(rank);
    for (int64_t expert = 0; expert < placement.CountOf(rank); ++expert)
      selections[expert] += arriving[expert];
  }
  for (int64_t expert = 0; expert < placement.CountOf(rank); ++expert) {
    recv_experts[expert] =
        static_cast<int32_t>(RoundUp(selections[expert], call.arguments.expert_alignment));
  }
}

// From the place among this rank's rows to the row at the receiver.
void OffsetSendHead(const NotifyCall& call, int64_t ranks) {
  const int rank = call.buffer->routes.rank();
  if (rank == 0) return;
  const auto* before = call.out.rank_prefix_matrix.data<int32_t>() + (rank - 1) * ranks;
  auto* head = call.out.send_head.data<int32_t>();
  for (int64_t token = 0; token < call.out.send_head.size(0); ++token) {
    for (int64_t peer = 0; peer < ranks; ++peer) {
      int32_t& row = head[token * ranks + peer];
      if (row >= 0) row += before[peer];
    }
  }
}

// One place a token: rows by source rank, then token.
bool PlaceByToken(const Exec& exec, const Meeting& meeting, const NotifyCall& call,
                  const ExpertPlacement& placement) {
  const auto* prefix = call.out.rank_prefix_matrix.data<int32_t>();
  const int64_t ranks = placement.ranks;
  for (int64_t destination = 0; destination < ranks; ++destination) {
    const int64_t rows = prefix[(ranks - 1) * ranks + destination];
    if (!CheckRoom(exec, meeting, static_cast<int>(destination), rows)) return false;
  }
  OffsetSendHead(call, ranks);
  return true;
}

// One place a selection: rows by expert, each expert's segment aligned, inside it by source rank,
// token and slot.
bool PlaceByExpert(const Exec& exec, const Meeting& meeting, const NotifyCall& call,
                   const ExpertPlacement& placement) {
  const int rank = meeting.buffer.routes.rank();
  std::vector<int64_t> next(static_cast<size_t>(placement.experts));
  for (int64_t destination = 0; destination < placement.ranks; ++destination) {
    int64_t start = 0;
    const int64_t begin = placement.BeginOf(destination);
    for (int64_t expert = begin; expert < begin + placement.CountOf(destination); ++expert) {
      int64_t total = 0;
      for (int source = 0; source < placement.ranks; ++source) {
        if (source == rank) next[static_cast<size_t>(expert)] = start + total;
        total += meeting.From(source).per_expert()[expert];
      }
      start += RoundUp(total, call.arguments.expert_alignment);
    }
    if (!CheckRoom(exec, meeting, static_cast<int>(destination), start)) return false;
  }
  const TopkIds ids(call.topk_idx);
  auto* slot_row = call.out.slot_row.data<int32_t>();
  for (int64_t i = 0; i < call.topk_idx.numel(); ++i) {
    slot_row[i] = ids[i] < 0 ? -1 : static_cast<int32_t>(next[static_cast<size_t>(ids[i])]++);
  }
  return true;
}

// The slot's previous results must have been read by all before anybody may write into it.
bool WaitUntilFree(const Exec& exec, const Buffer& buffer, int64_t slot, int64_t deadline) {
  const uint64_t combines = buffer.slots[slot].combine_epoch;
  return buffer.WaitForAll(exec, slot, SignalKind::kCombineRead, combines, deadline,
                           kDispatchOperation, "word that it has read the last combine");
}

// FNV-1a over the counts, which are the same on all ranks of one dispatch: ranks with plans of
// different dispatches would write over one another's rows.
int64_t DigestOf(const Tensor& counts) {
  uint64_t digest = 0xcbf29ce484222325;
  for (int64_t i = 0; i < counts.numel(); ++i) {
    digest = (digest ^ static_cast<uint32_t>(counts.data<int32_t>()[i])) * 0x100000001b3;
  }
  return static_cast<int64_t>(digest >> 1);
}

}  // namespace

void Notify(const Exec& exec, const NotifyCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  const ExpertPlacement placement{call.arguments.experts, buffer.routes.world_size()};
  const Meeting meeting{buffer, call.slot, ++buffer.slots[call.slot].dispatch_epoch};
  if (!WaitUntilFree(exec, buffer, call.slot, deadline)) return;
  const InvalidId invalid = CountTokens(call, placement);
  SendCounts(meeting, call, placement, invalid);
  buffer.SignalAll(call.slot, SignalKind::kCounts, meeting.epoch);
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kCounts, meeting.epoch, deadline,
                         kDispatchOperation, "counts"))
    return;
  if (!CheckHeads(exec, meeting) || !CheckIds(exec, meeting, call)) return;
  DeriveLayout(meeting, call, placement);
  const bool grouped = call.arguments.grouped != 0;
  const bool placed = grouped ? PlaceByExpert(exec, meeting, call, placement)
                              : PlaceByToken(exec, meeting, call, placement);
  if (placed) buffer.slots[call.slot].settled_epoch = meeting.epoch;
}

void NotifyCached(const Exec& exec, const NotifyCachedCall& call) {
  Buffer& buffer = *call.buffer;
  if (!buffer.routes.CheckNotPoisoned(exec)) return;
  const int64_t deadline = DeadlineAfter(call.timeout_ms);
  const Meeting meeting{buffer, call.slot, ++buffer.slots[call.slot].dispatch_epoch};
  if (!WaitUntilFree(exec, buffer, call.slot, deadline)) return;
  SharedArguments arguments = call.arguments;
  arguments.plan_digest = DigestOf(call.rank_prefix_matrix);
  for (int peer = 0; peer < buffer.routes.world_size(); ++peer) {
    FillHead(meeting.To(peer).head(), arguments, {-1, -1}, buffer.layout.capacity, call.tokens);
  }
  buffer.SignalAll(call.slot, SignalKind::kCounts, meeting.epoch);
  if (!buffer.WaitForAll(exec, call.slot, SignalKind::kCounts, meeting.epoch, deadline,
                         kDispatchOperation, "word that its slot is free")) {
    return;
  }
  if (CheckHeads(exec, meeting)) buffer.slots[call.slot].settled_epoch = meeting.epoch;
}

}  // namespace moe_ep::cpu
