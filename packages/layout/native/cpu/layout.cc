#include "cpu/layout.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace moe_ep::cpu {

void GetDispatchLayout(const TopkIds& topk_idx, const DispatchLayout& layout) {
  const int64_t ranks = layout.placement.ranks;
  const int64_t nodes = layout.num_nodes();
  std::fill_n(layout.num_tokens_per_rank, ranks, 0);
  std::fill_n(layout.num_tokens_per_expert, layout.placement.experts, 0);
  if (layout.num_tokens_per_rdma_rank != nullptr)
    std::fill_n(layout.num_tokens_per_rdma_rank, nodes, 0);
  std::memset(layout.is_token_in_rank, 0, static_cast<size_t>(layout.num_tokens * ranks));

  // The newest token seen by each node: a token counts once a node, however many of its ranks it
  // meets.
  std::vector<int64_t> newest(static_cast<size_t>(nodes), -1);
  for (int64_t token = 0; token < layout.num_tokens; ++token) {
    uint8_t* in_rank = layout.is_token_in_rank + token * ranks;
    for (int64_t slot = 0; slot < layout.num_topk; ++slot) {
      const int64_t expert = topk_idx[token * layout.num_topk + slot];
      if (expert < 0) continue;
      ++layout.num_tokens_per_expert[expert];
      const int64_t rank = layout.placement.RankOf(expert);
      if (in_rank[rank] != 0) continue;
      in_rank[rank] = 1;
      ++layout.num_tokens_per_rank[rank];
      if (nodes == 0) continue;
      const int64_t node = rank / layout.ranks_per_node;
      if (newest[node] == token) continue;
      newest[node] = token;
      ++layout.num_tokens_per_rdma_rank[node];
    }
  }
}

void GetRankPrefixMatrix(const int32_t* num_tokens_per_rank, int64_t ranks, int32_t* out) {
  for (int64_t source = 0; source < ranks; ++source) {
    for (int64_t destination = 0; destination < ranks; ++destination) {
      const int32_t before = source == 0 ? 0 : out[(source - 1) * ranks + destination];
      out[source * ranks + destination] =
          before + num_tokens_per_rank[source * ranks + destination];
    }
  }
}

void GetChannelPrefixMatrix(const uint8_t* is_token_in_rank, int64_t num_tokens, int64_t ranks,
                            int64_t channels, int32_t* out) {
  const int64_t tokens_per_channel = (num_tokens + channels - 1) / channels;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    int32_t count = 0;
    for (int64_t channel = 0; channel < channels; ++channel) {
      const int64_t begin = std::min(channel * tokens_per_channel, num_tokens);
      const int64_t end = std::min(begin + tokens_per_channel, num_tokens);
      for (int64_t token = begin; token < end; ++token)
        count += is_token_in_rank[token * ranks + rank];
      out[rank * channels + channel] = count;
    }
  }
}

}  // namespace moe_ep::cpu
