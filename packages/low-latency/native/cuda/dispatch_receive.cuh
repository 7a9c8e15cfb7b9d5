// The receive phase of dispatch: once all sources have signalled, blocks find the rows of an expert
// in the ids of all tokens and copy a share of them to where the expert has them.
#pragma once

#include "cuda/check_heads.cuh"
#include "cuda/dispatch.cuh"
#include "cuda/scan.cuh"

namespace moe_ep::cuda {

inline constexpr int kListed = 2048;   // tokens looked at between two barriers
inline constexpr int kSlotShift = 16;  // of what a list holds: token | slot
static_assert(kMostRanks * 1024 <= 1 << kSlotShift);

struct alignas(16) ReceiveShared {
  int tokens[kMostRanks];
  bool ok;  // as CheckHeads found it
  Scan scan;
  uint32_t list[kListed];
  CopyStages stages;
};

// What a block packs: rows of one expert, or all messages; of them a share.
struct Item {
  int expert;  // local; -1: every token that has an expert here
  int part;
  int parts;
};

// A row of a group, which is an expert or a source.
struct Place {
  int64_t group;
  int row;
};

// `kByteScales`: scales are rows of bytes; else columns of words, or absent.
template <bool kByteScales>
class Receiver {
 public:
  __device__ Receiver(const DispatchArguments& a, ReceiveShared* shared)
      : a_(a),
        buffer_(a.buffer),
        shared_(shared),
        copier_(a.pieces, &shared->stages),
        begin_(static_cast<int>(a.placement.BeginOf(a.buffer.rank()))),
        end_(begin_ + static_cast<int>(a.placement.CountOf(a.buffer.rank()))) {
    const int lane = threadIdx.x % kLanes;
    most_tokens_ = __reduce_max_sync(kAllLanes, lane < buffer_.ranks() ? shared->tokens[lane] : 0);
  }

  // All threads of the block call it, and meet before they call it again.
  __device__ void Pack(Item item) {
    const int from = item.expert < 0 ? begin_ : begin_ + item.expert;
    const int to = item.expert < 0 ? end_ : from + 1;
    shared_->scan.Run(buffer_.ranks(), most_tokens_, [&](int source, int token) {
      if (token >= shared_->tokens[source]) return false;
      return SlotsOf(IdsOf(source, token), from, to) != 0;
    });
    if (!shared_->ok) return;
    const Scan& scan = shared_->scan;
    if (item.part == 0) Count(item);
    const int share_begin = scan.total() * item.part / item.parts;
    const int share_end = scan.total() * (item.part + 1) / item.parts;
#pragma unroll 1
    for (int word = 0; word < scan.num_words; word += kListed / kLanes) {
      const int last_word = min(word + kListed / kLanes, scan.num_words);
      const int first = max(share_begin, scan.before[word]);
      const int listed = min(share_end, scan.before[last_word]) - first;
      if (listed <= 0) continue;
#pragma unroll 1
      for (int i = threadIdx.x; i < (last_word - word) * kLanes; i += kThreads)
        List(item, word * kLanes + i, first, listed);
      __syncthreads();
      Copy(item, first, listed);
      if (last_word < scan.num_words) __syncthreads();  // before the next tokens take the list
    }
  }

 private:
  __device__ const int32_t* IdsOf(int source, int token) const {
    return buffer_.Ids(buffer_.rank(), source) + token * a_.stride();
  }
  __device__ bool rank_major() const { return a_.shared.rank_major != 0; }

  // How many there are of all, and from each source. All threads call it.
  __device__ void Count(Item item) const {
    const Scan& scan = shared_->scan;
    const int thread = static_cast<int>(threadIdx.x);
    const int ranks = buffer_.ranks();
    if (item.expert < 0) {
      if (thread <= ranks) a_.received_first[thread] = scan.FirstOf(thread);
      if (rank_major() && thread < ranks)
        Tell(thread, scan.FirstOf(thread + 1) - scan.FirstOf(thread));
      return;
    }
    if (thread == 0) Tell(item.expert, scan.total());
    if (thread >= ranks) return;
    const int64_t begin = scan.FirstOf(thread);
    a_.layout_range[int64_t{item.expert} * ranks + thread] =
        begin << 32 | (scan.FirstOf(thread + 1) - begin);
  }
  __device__ void Tell(int group, int count) const {
    a_.count[group] = count;
    if (a_.recv_stats != nullptr) a_.recv_stats[group] += count;
  }

  // Where the row goes of what is the `order`-th of an item.
  __device__ Place PlaceOf(Item item, int source, int order) const {
    if (item.expert >= 0) return {item.expert, order};
    return {source, order - shared_->scan.FirstOf(source)};
  }
  // The row among those of all groups.
  __device__ int64_t TargetOf(Place place) const { return place.group * a_.rows + place.row; }

  // Puts a token on the list if the block copies its row, and writes what is known of it. `bit`:
  // its place in the scan.
  __device__ void List(Item item, int bit, int first, int listed) const {
    const Scan& scan = shared_->scan;
    const int word = bit / kLanes;
    if ((scan.bits[word] >> (bit % kLanes) & 1u) == 0) return;
    const int order = scan.before[word] + __popc(scan.bits[word] & ((1u << (bit % kLanes)) - 1u));
    if (order < first || order >= first + listed) return;
    const int source = word / scan.words_of_source;
    const int token = bit - source * scan.words_of_source * kLanes;
    const int32_t* const ids = IdsOf(source, token);
    const int64_t origin = source * buffer_.layout.max_tokens + token;
    int32_t* const rows = a_.received_rows + origin * a_.stride();
    const int64_t target = TargetOf(PlaceOf(item, source, order));
    if (item.expert < 0) {
      a_.received_messages[order] = static_cast<int32_t>(origin);
      if (rank_major()) {
        PutRouting(source, token, target);
      } else {
        // Experts' blocks fill in the others.
        const uint32_t local = SlotsOf(ids, begin_, end_);
#pragma unroll 1
        for (int slot = 0; slot < a_.topk(); ++slot)
          if ((local >> slot & 1u) == 0) rows[slot] = -1;
        return;
      }
    }
    uint32_t found = 0;
    if (item.expert >= 0) {
      found = SlotsOf(ids, begin_ + item.expert, begin_ + item.expert + 1);
#pragma unroll 1
      for (uint32_t left = found; left != 0; left &= left - 1)
        rows[__ffs(static_cast<int>(left)) - 1] = static_cast<int32_t>(target);
    }
    a_.src_info[target] = token;
    shared_->list[order - first] =
        static_cast<uint32_t>(origin) |
        (a_.per_selection() ? static_cast<uint32_t>(__ffs(static_cast<int>(found)) - 1) : 0u)
            << kSlotShift;
  }

  // A bit for each slot with an id in [from, to). Loads only: none waits for a store.
  __device__ uint32_t SlotsOf(const int32_t* ids, int from, int to) const {
    uint32_t slots = 0;
    const int quads = a_.stride() / 4;
    const auto* const vectors = reinterpret_cast<const int4*>(ids);
    const auto lies = [&](int id, int slot) { return id >= from && id < to ? 1u << slot : 0u; };
    const auto add = [&](int4 four, int i) {
      slots |= lies(four.x, 4 * i) | lies(four.y, 4 * i + 1) | lies(four.z, 4 * i + 2) |
               lies(four.w, 4 * i + 3);
    };
    // Two at a time: memory is far away.
#pragma unroll 1
    for (int i = 0; i < quads; i += 2) {
      const int4 low = vectors[i];
      const int4 high = i + 1 < quads ? vectors[i + 1] : make_int4(-1, -1, -1, -1);
      add(low, i);
      if (i + 1 < quads) add(high, i + 1);
    }
    return slots;
  }

  // Rank-major: experts are told by ids instead.
  __device__ void PutRouting(int source, int token, int64_t target) const {
    const int32_t* const ids = IdsOf(source, token);
    const float* const weights = buffer_.Weights(buffer_.rank(), source) + token * a_.stride();
#pragma unroll 1
    for (int slot = 0; slot < a_.topk(); ++slot) {
      const int id = __ldcg(ids + slot);
      const bool local = id >= begin_ && id < end_;
      a_.topk_idx[target * a_.topk() + slot] = local ? id - begin_ : -1;
      if (a_.topk_weights != nullptr)
        a_.topk_weights[target * a_.topk() + slot] = local ? __ldcg(weights + slot) : 0.0f;
    }
  }

  __device__ void Copy(Item item, int first, int listed) {
    if (item.expert < 0 && !rank_major()) return;
    const int64_t row_bytes = a_.pieces.row_bytes;
    const auto most_tokens = static_cast<uint32_t>(buffer_.layout.max_tokens);
    const auto place_of = [&](int i, uint32_t entry) {
      return PlaceOf(item, static_cast<int>((entry & 0xffffu) / most_tokens), first + i);
    };
    const auto message_of = [&](uint32_t entry) {
      const uint32_t origin = entry & 0xffffu;
      const auto source = static_cast<int>(origin / most_tokens);
      return buffer_.Message(buffer_.rank(), source, origin - source * buffer_.layout.max_tokens,
                             static_cast<int>(entry >> kSlotShift));
    };
    const auto row_from = [&](int i) { return message_of(shared_->list[i]); };
    const auto row_to = [&](int i) {
      return a_.recv_x + TargetOf(place_of(i, shared_->list[i])) * row_bytes;
    };
    copier_.Begin(listed, row_from);
    // Scales while rows are on their way.
    CopyScales(listed, place_of, message_of);
    copier_.Finish(listed, row_from, row_to);
  }

  template <typename PlaceOf, typename MessageOf>
  __device__ __forceinline__ void CopyScales(int listed, const PlaceOf& place_of,
                                             const MessageOf& message_of) const {
    if constexpr (kByteScales) {
      a_.scale_rows.Copy(
          listed, [&](int i) { return message_of(shared_->list[i]) + a_.pieces.row_bytes; },
          [&](int i) { return TargetOf(place_of(i, shared_->list[i])); });
      return;
    }
    if (a_.scales == nullptr) return;
#pragma unroll 1
    for (int unit = threadIdx.x; unit < listed * a_.scale_columns; unit += kThreads) {
      const int i = unit % listed;
      const uint32_t entry = shared_->list[i];
      PutScale(message_of(entry), place_of(i, entry), unit / listed);
    }
  }

  // A word of a row's scales to its column.
  __device__ void PutScale(const uint8_t* message, Place place, int column) const {
    const auto* const scales =
        reinterpret_cast<const uint32_t*>(message + ScalesOffset(a_.shared.hidden));
    const auto groups = static_cast<int>(NumGroups(a_.shared.hidden));
    uint32_t word = 0;
    if (a_.packed) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column * 4 + i < groups)
          word |= (__ldcg(scales + column * 4 + i) >> 23 & 0xffu) << (8 * i);
    } else {
      word = __ldcg(scales + column);
    }
    a_.scales[(place.group * a_.scale_columns + column) * a_.rows + place.row] = word;
  }

  const DispatchArguments& a_;
  const DeviceBuffer& buffer_;
  ReceiveShared* shared_;
  RowCopier copier_;
  int begin_;  // experts of this rank
  int end_;
  int most_tokens_ = 0;
};

// Rank-major: rows that did not come must not look like those of an earlier dispatch. Called after
// the block that counts has counted them in its scan.
__device__ inline void ClearRouting(const DispatchArguments& a, const Scan& scan) {
  const int topk = a.topk();
  const auto all = static_cast<int64_t>(a.buffer.ranks()) * a.rows * topk;
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < all;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / topk;
    const auto source = static_cast<int>(row / a.rows);
    if (row - source * a.rows < scan.FirstOf(source + 1) - scan.FirstOf(source)) continue;
    a.topk_idx[i] = -1;
    if (a.topk_weights != nullptr) a.topk_weights[i] = 0.0f;
  }
}

template <bool kByteScales>
__device__ void Receive(const DispatchArguments& a, uint64_t begin_ns, uint64_t epoch, bool ok,
                        RankBits present, ReceiveShared* shared) {
  const DeviceBuffer& buffer = a.buffer;
  ok = WaitForAll(buffer, a.patience, begin_ns,
                  {SignalKind::kMessages, SignalOf(epoch, 0), StepOf(epoch, Wait::kToReceive),
                   Operation::kLowLatencyDispatch, Missing::kMessages},
                  ok, &present, blockIdx.x == 0 ? a.wait_stats : nullptr, shared->tokens);
  LetNextBegin();
  if (ok) {
    // One warp looks at the heads while the others begin; all hear of it behind the first scan.
    if (threadIdx.x / kLanes == kWarps - 1) CheckHeads(a, present, &shared->ok);
    Receiver<kByteScales> receiver(a, shared);
    const auto blocks = static_cast<int>(gridDim.x);
    if (a.shared.rank_major != 0) {
      receiver.Pack({-1, static_cast<int>(blockIdx.x), blocks});
      if (shared->ok) ClearRouting(a, shared->scan);
    } else {
      const auto experts = static_cast<int>(a.placement.CountOf(buffer.rank()));
      const int parts = experts == 0 ? 1 : max(1, (blocks - 1) / experts);
#pragma unroll 1
      for (int i = blockIdx.x; i <= experts * parts; i += blocks) {
        if (i >= blocks) __syncthreads();
        receiver.Pack(i == experts * parts ? Item{-1, 0, 1} : Item{i / parts, i % parts, parts});
      }
    }
  }
  if (!IsArriving()) return;
  // Its warp looked at the heads.
  Arrive(a.arrived + 1, !ok || !shared->ok, [&](unsigned failed) {
    if (failed > 0) return SnapshotFailure(a.patience.failure, a.snapshot);
    buffer.State().received = epoch;
    buffer.State().present = present;
  });
}

}  // namespace moe_ep::cuda
